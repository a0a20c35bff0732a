"""Which implementation runs, and that importing the package needs neither triton nor a GPU."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kernels import backend
from kernels.backend import backend_for

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def nothing_asked(monkeypatch):
    monkeypatch.delenv("EARLYBIRD_KERNELS", raising=False)
    backend.asked.cache_clear()
    yield
    backend.asked.cache_clear()


def test_cpu_takes_the_reference_and_says_why_once(caplog):
    backend._announce.cache_clear()
    with caplog.at_level(logging.INFO, logger="kernels.backend"):
        assert backend_for("normalize", CPU) == "reference"
        assert backend_for("normalize", CPU) == "reference"
        assert backend_for("lookahead", CPU) == "reference"
    assert [message.partition(",")[0] for message in caplog.messages] == [
        f"{operation} on cpu: reference" for operation in ("normalize", "lookahead")
    ]
    assert all("no NVIDIA GPU" in message for message in caplog.messages)


def test_cpu_takes_the_reference_even_under_the_interpreter_unless_forced(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert backend_for("normalize", CPU) == "reference"
    assert backend_for("normalize", CPU, "triton") == "triton"
    assert backend_for("normalize", CPU, "reference") == "reference"


def test_asking_for_what_cannot_run_is_refused(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"no NVIDIA GPU.*set the kernel backend to auto or reference"):
        backend_for("normalize", CPU, "triton")
    with pytest.raises(ValueError, match="choose one of auto, reference, triton"):
        backend_for("normalize", CPU, "cuda")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(ValueError, match="float64 logits"):
        backend_for("normalize", CPU, "triton", unfit="float64 logits")


def test_a_gpu_takes_triton_unless_it_is_too_old(monkeypatch):
    gpu = torch.device("cuda", 0)
    for capability, expected in (((9, 0), "triton"), ((7, 5), "reference")):
        backend._gpu_obstacle.cache_clear()
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _, c=capability: c)
        assert backend_for("exit_losses", gpu) == expected
    assert backend_for("exit_losses", gpu, unfit="float64 logits") == "reference"
    backend._gpu_obstacle.cache_clear()


def test_the_environment_chooses_in_the_place_of_auto(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("EARLYBIRD_KERNELS", "norm_relu=triton, lookahead=reference")
    assert backend_for("norm_relu", CPU, slower="small") == "triton"
    assert backend_for("norm_relu", CPU, "reference") == "reference"
    assert backend_for("exit_losses", CPU) == "reference"
    for wrong in ("norm=triton", "norm_relu=cuda", "triton"):
        backend.asked.cache_clear()
        monkeypatch.setenv("EARLYBIRD_KERNELS", wrong)
        with pytest.raises(ValueError, match=f"has '{wrong}'; give operation=choice"):
            backend_for("norm_relu", CPU)


def test_auto_leaves_to_the_reference_what_that_does_faster(monkeypatch):
    gpu = torch.device("cuda", 0)
    backend._gpu_obstacle.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    assert backend_for("norm_relu", gpu, slower="few values") == "reference"
    assert backend_for("norm_relu", gpu, "triton", slower="few values") == "triton"
    assert backend_for("norm_relu", gpu) == "triton"
    backend._gpu_obstacle.cache_clear()


def test_every_operation_can_be_chosen():
    """The names that are announced are those that the environment knows."""
    sources = "".join(path.read_text() for path in Path(backend.__file__).parent.glob("*/__init__.py"))
    assert sorted(re.findall(r'backend_for\(\s*"(\w+)"', sources)) == sorted(backend.OPERATIONS)


def test_without_triton_everything_imports_and_the_reference_runs():
    script = """
import sys
sys.modules["triton"] = None  # importing it fails
import torch
import kernels.bench
from kernels.exit_losses import exit_losses
from kernels.exit_routing import quotas, route
assert exit_losses([torch.zeros(2, 3)], torch.zeros(2, dtype=torch.int64)).top1.all()
assert route(torch.zeros(2, 2), quotas(2, 1.0, 2)).tolist() == [0, 1]
"""
    subprocess.run([sys.executable, "-c", script], check=True)
