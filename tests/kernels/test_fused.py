"""The fused kernels agree with their references: under the interpreter anywhere, compiled where there is a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

CASES = sorted(str(path) for path in Path(__file__).parent.glob("*_cases.py"))


def run_cases(**environment: str) -> None:
    environ = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | environment
    # One thread: the interpreter's many small steps gain nothing from more, and share the machine.
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations=3", *CASES]
    done = subprocess.run(command, env=environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_interpreted():
    run_cases(TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_compiled():
    run_cases()
