from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dataloading.batch import Batch
from kernels.exit_losses import exit_losses
from trainer.evaluation.anytime import anytime, anytime_rows
from trainer.evaluation.exits import ExitScores, score_exits
from trainer.learning.precision import PrecisionConfig, resolve_precision

ROOT = Path(__file__).resolve().parents[3]
PRECISION = resolve_precision(PrecisionConfig("float64"), torch.device("cpu"))
NUM_IMAGES, K, C = 23, 3, 7


class ThreeExits(nn.Module):
    """Exit k is a linear layer of the first pixels; batch-norm makes a forgotten train mode show."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.heads = nn.ModuleList(nn.Linear(12, C) for _ in range(K))

    def forward(self, images: Tensor) -> list[Tensor]:
        return [head(self.norm(images).flatten(1)) for head in self.heads]


def _split() -> tuple[ThreeExits, Tensor, Tensor]:
    torch.manual_seed(0)
    net = ThreeExits().double()
    return net, torch.randn(NUM_IMAGES, 3, 2, 2, dtype=torch.float64), torch.randint(0, C, (NUM_IMAGES,))


def _batches(images: Tensor, labels: Tensor, rows: np.ndarray, size: int) -> list[Batch]:
    """Batches of `size` in the order of `rows`; -1 is padding, filled with NaN and a wrong label."""
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    batches = []
    for part in parts:
        mask = torch.from_numpy(part >= 0)
        pixels = torch.where(mask[:, None, None, None], images[part], math.nan)
        batches.append(Batch(pixels, labels[part], part, mask))
    return batches


def _expected() -> ExitScores:
    net, images, labels = _split()
    scores = exit_losses(net.eval()(images), labels)
    return ExitScores(
        NUM_IMAGES,
        scores.top1.sum(0).tolist(),
        scores.top5.sum(0).tolist(),
        scores.losses.sum(0).tolist(),
    )


@pytest.mark.parametrize("size", [1, 5, 32])
def test_sums_count_every_image_once_in_any_order(size: int) -> None:
    net, images, labels = _split()
    rows = np.append(np.random.default_rng(1).permutation(NUM_IMAGES), [-1] * (-NUM_IMAGES % size))
    scores = score_exits(net.train(), _batches(images, labels, rows, size), PRECISION, per_sample=True)
    expected = _expected()
    assert (scores.num_images, scores.top1, scores.top5) == (NUM_IMAGES, expected.top1, expected.top5)
    assert scores.loss == pytest.approx(expected.loss, rel=1e-12)
    assert net.training, "the net's mode must be put back"
    own = exit_losses(net.eval()(images), labels)
    assert scores.samples is not None
    assert scores.samples.ids.tolist() == list(range(NUM_IMAGES))
    torch.testing.assert_close(scores.samples.confidences, own.confidences.detach(), rtol=1e-12, atol=0)
    assert torch.equal(scores.samples.correct, own.top1)


def test_anytime_rows_are_means_in_percent() -> None:
    rows = anytime_rows(ExitScores(8, [2, 4], [4, 8], [4.0, 2.0]))
    assert rows == [
        {"exit": 1, "top1": 25.0, "top5": 50.0, "loss": 0.5, "num_images": 8},
        {"exit": 2, "top1": 50.0, "top5": 100.0, "loss": 0.25, "num_images": 8},
    ]


def test_refuses_nothing_to_evaluate() -> None:
    net, images, labels = _split()
    with pytest.raises(ValueError, match="no evaluation batch"):
        anytime(net, [], PRECISION)
    with pytest.raises(ValueError, match="nothing to evaluate"):
        anytime(net, _batches(images, labels, np.array([-1, -1]), 2), PRECISION)


def test_two_ranks_score_as_one(tmp_path: Path) -> None:
    command = [sys.executable, __file__, str(tmp_path / "rendezvous")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ranks = [subprocess.Popen([*command, str(rank)], env=environment, cwd=ROOT) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]


def _one_of_two_ranks(rendezvous: str, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    net, images, labels = _split()
    rows = np.append(np.arange(rank, NUM_IMAGES, 2), [-1] * rank)  # 12 images, and 11 with one row of padding
    scores = score_exits(net, _batches(images, labels, rows, 5), PRECISION, per_sample=True)
    expected = _expected()
    assert (scores.num_images, scores.top1, scores.top5) == (NUM_IMAGES, expected.top1, expected.top5)
    assert scores.loss == pytest.approx(expected.loss, rel=1e-12)
    assert scores.samples is not None
    assert scores.samples.ids.tolist() == list(range(NUM_IMAGES))
    assert scores.samples.correct.sum(0).tolist() == expected.top1
    dist.destroy_process_group()


if __name__ == "__main__":
    _one_of_two_ranks(sys.argv[1], int(sys.argv[2]))
