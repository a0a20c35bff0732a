"""The heap that keeps what is freed: seen by the page faults of a second allocation, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's heap")

_MEASURE = """
import json, resource
import torch
from dataloading import heap

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(64 << 18)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

{first}
for _ in range(16):  # glibc sets small blocks between large ones until it has enough of them
    torch.ones(64 << 18)
print(json.dumps({{"faults": [faults() for _ in range(3)], "trimmed": heap.trim_heap() or faults()}}))
"""
_PAGES = 16_384  # 64 MB of 4 kB


def _measured(first: str) -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", _MEASURE.format(first=first)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_without_it_every_large_tensor_is_faulted_in_anew() -> None:
    assert min(_measured("")["faults"]) >= _PAGES // 512  # huge pages, where the machine gives them to everyone


def test_a_kept_heap_gives_the_same_memory_again() -> None:
    measured = _measured("heap.keep_heap(); heap.keep_heap()")
    assert max(measured["faults"]) < _PAGES // 512
    assert measured["trimmed"] < _PAGES // 4  # the end of the heap stays when the loader trims it


def test_where_addresses_are_refused_pages_stay_small() -> None:
    limit = "import resource; resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30)); heap.keep_heap()"
    measured = _measured(limit + "; assert heap._reserved == 0")
    assert max(measured["faults"]) < _PAGES // 512
