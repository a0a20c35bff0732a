"""A compiled net keeps its graphs where the next start finds them, whatever was imported before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BUILD = """
import os, sys, torch
from trainer.config import resolve
from trainer.learning.state import Progress
from trainer.run.build import build_state
from trainer.run.distributed import Ranks

if sys.argv[1]:
    from torch._inductor.runtime.cache_dir_utils import cache_dir
    cache_dir()
build_state(resolve("demo", ["precision.compile=true"]), 5, Progress(0, 1), Ranks(0, 1, 0, 1, torch.device("cpu")))
print(os.environ["TORCHINDUCTOR_CACHE_DIR"])
"""


@pytest.mark.parametrize(
    ("asked_before", "own", "expected"), [("", "", "inductor"), ("yes", "", "inductor"), ("", "mine", "mine")]
)
def test_the_compilers_cache(tmp_path: Path, asked_before: str, own: str, expected: str) -> None:
    """asked_before: torch has chosen its temporary folder already; own: the user names one."""
    environ = {name: value for name, value in os.environ.items() if name != "TORCHINDUCTOR_CACHE_DIR"}
    environ |= {"XDG_CACHE_HOME": str(tmp_path)} | ({"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / own)} if own else {})
    done = subprocess.run(
        [sys.executable, "-c", BUILD, asked_before], env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.splitlines()[-1])
    assert folder.name == expected
    assert folder.is_relative_to(tmp_path)
