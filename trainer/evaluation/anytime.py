"""Anytime prediction: every exit scored on all images (METHOD: evaluation)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypedDict

from torch import nn

from dataloading.batch import Batch
from trainer.evaluation.exits import ExitScores, score_exits
from trainer.learning.precision import Precision


class AnytimeRow(TypedDict):
    """One exit, counted from 1; top1 and top5 in percent, loss in nats, all means over num_images."""

    exit: int
    top1: float
    top5: float
    loss: float
    num_images: int


def anytime(net: nn.Module, batches: Iterable[Batch], precision: Precision) -> list[AnytimeRow]:
    """Score every exit of `net` on all images of all ranks, each exactly once."""
    return anytime_rows(score_exits(net, batches, precision))


def anytime_rows(scores: ExitScores) -> list[AnytimeRow]:
    """Means from sums: divided once, after every rank's counts were added."""
    num_images = scores.num_images
    return [
        {
            "exit": k,
            "top1": 100 * top1 / num_images,
            "top5": 100 * top5 / num_images,
            "loss": loss / num_images,
            "num_images": num_images,
        }
        for k, (top1, top5, loss) in enumerate(zip(scores.top1, scores.top5, scores.loss, strict=True), start=1)
    ]
