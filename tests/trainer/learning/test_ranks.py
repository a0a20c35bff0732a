"""Two ranks move every tensor as one rank does with the same images, and keep their states alike."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

WORKER = ["-m", "tests.trainer.learning.rank_worker"]
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """States after a few iterations, by one and by two processes."""
    folder = tmp_path_factory.mktemp("ranks")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for command in ([sys.executable], torchrun):
        subprocess.run([*command, *WORKER, str(folder)], check=True, env=environment, cwd=ROOT, timeout=600)
    return folder


@pytest.mark.parametrize(
    "case",
    [
        *("exact-mat", "exact-row-nesterov", "exact-col-accumulated", "online", "double-backward"),
        *("exact-mat-accumulated", "channels-last", "compiled"),
        *("unread", "unread-accumulated"),  # parameters that no exit reads
        *("imta-pretrain", "imta-finetune"),
    ],
)
def test_two_ranks_are_one(folder: Path, case: str) -> None:
    one, two = (np.load(folder / f"{case}-0-of-{world}.npz") for world in (1, 2))
    _assert_alike(one, two)


@pytest.mark.parametrize("case", ["exact-mat-accumulated", "channels-last", "double-backward"])
@pytest.mark.parametrize("world", [1, 2])
def test_exact_is_double_backward_over_ranks(folder: Path, case: str, world: int) -> None:
    _assert_alike(*(np.load(folder / f"{name}-0-of-{world}.npz") for name in ("exact-mat", case)))


@pytest.mark.parametrize("world", [1, 2])
def test_exact_is_double_backward_with_the_ranks_own_statistics(folder: Path, world: int) -> None:
    names = ("batch-statistics", "double-backward-batch-statistics")
    _assert_alike(*(np.load(folder / f"{name}-0-of-{world}.npz") for name in names))


def _assert_alike(one: Mapping[str, np.ndarray], two: Mapping[str, np.ndarray]) -> None:
    """Every group of tensors but for rounding."""
    assert set(one) == set(two)
    for group in ("model.", "optimizer.", "weight_net.", "weight_net_optimizer."):
        names = [name for name in one if name.startswith(group)]
        assert names
        theirs = np.concatenate([one[name].ravel() for name in names])
        ours = np.concatenate([two[name].ravel() for name in names])
        assert np.linalg.norm(theirs - ours) <= 1e-9 * np.linalg.norm(theirs), group


@pytest.mark.parametrize(
    "case", ["exact-mat", "batch-statistics", "double-backward", "bf16", "imta-finetune-statistics"]
)
def test_ranks_stay_alike(folder: Path, case: str) -> None:
    """Replicated state, running batch-norm statistics included, is bit-equal on both ranks."""
    first, second = (np.load(folder / f"{case}-{rank}-of-2.npz") for rank in (0, 1))
    for name in first.files:
        assert np.array_equal(first[name], second[name]), name
