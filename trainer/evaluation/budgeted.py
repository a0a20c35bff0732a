"""Budgeted batch prediction: each image leaves at the first exit that is sure enough (METHOD: evaluation)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import Tensor

from kernels.exit_routing import shares

RATIOS = tuple(i / 20 for i in range(1, 40))  # 0.05 .. 1.95

NOBODY, EVERYBODY = 1e8, -1e8


class BudgetedRow(TypedDict):
    """One point of the curve.

    ratio         q: the share of images meant to leave at exit k is proportional to q^k
    top1          test accuracy, percent; heldout_top1 the same on the images that set the thresholds
    mul_adds      expected per test image, in the unit of the costs given
    thresholds    [K] an image leaves at the first exit whose confidence reaches its threshold
    exit_shares   [K] of the test images that left at each exit
    """

    ratio: float
    top1: float
    heldout_top1: float
    mul_adds: float
    thresholds: list[float]
    exit_shares: list[float]


def budgeted_batch(
    heldout_confidences: Tensor,
    heldout_correct: Tensor,
    test_confidences: Tensor,
    test_correct: Tensor,
    mul_adds: Sequence[float],
    ratios: Sequence[float] = RATIOS,
) -> list[BudgetedRow]:
    """The accuracy-over-cost curve: thresholds from held-out images, scores from test images; tensors on the host.

    confidences  [M, K] floating; correct  [M, K] bool, top-1 hits; mul_adds  [K] cost of an image that leaves at exit k
    Raises ValueError where the shapes do not fit each other or a confidence is not finite.
    """
    K = len(mul_adds)
    for name, confidences, correct in (
        ("held-out", heldout_confidences, heldout_correct),
        ("test", test_confidences, test_correct),
    ):
        if confidences.shape != correct.shape or confidences.ndim != 2 or confidences.shape[1] != K or not len(correct):
            raise ValueError(
                f"{name} confidences {tuple(confidences.shape)} and hits {tuple(correct.shape)} must both be "
                f"[images, {K}], one column for each of the {K} costs, with at least one image"
            )
        if not confidences.isfinite().all():
            raise ValueError(f"a {name} confidence is not finite: the net diverged; evaluate an earlier checkpoint")
    order = heldout_confidences.argsort(dim=0, descending=True, stable=True)
    rows: list[BudgetedRow] = []
    for ratio in ratios:
        thresholds = find_thresholds(heldout_confidences, shares(ratio, K), order)
        leaves = _exits_taken(test_confidences, thresholds)
        num_left = torch.bincount(leaves, minlength=K).tolist()
        rows.append(
            {
                "ratio": ratio,
                "top1": _percent(test_correct, leaves),
                "heldout_top1": _percent(heldout_correct, _exits_taken(heldout_confidences, thresholds)),
                "mul_adds": sum(n * cost for n, cost in zip(num_left, mul_adds, strict=True)) / len(leaves),
                "thresholds": thresholds.tolist(),
                "exit_shares": [n / len(leaves) for n in num_left],
            }
        )
    return rows


def find_thresholds(confidences: Tensor, exit_shares: Tensor, order: Tensor | None = None) -> Tensor:
    """[K] thresholds that send exit_shares[k] of the held-out images to exit k (METHOD: evaluation, budgeted batch).

    confidences  [N, K]; order  [N, K] their descending order per exit, where the caller has it already
    """
    N, K = confidences.shape
    if order is None:
        order = confidences.argsort(dim=0, descending=True, stable=True)
    thresholds = torch.full((K,), NOBODY, dtype=confidences.dtype)
    taken = torch.zeros(N, dtype=torch.bool)
    for k in range(K - 1):
        quota = math.floor(N * exit_shares[k])
        free = order[:, k][~taken[order[:, k]]]
        if 0 < quota <= len(free):
            thresholds[k] = confidences[free[quota - 1], k]
        taken |= confidences[:, k] >= thresholds[k]
    thresholds[K - 1] = EVERYBODY
    return thresholds


def _exits_taken(confidences: Tensor, thresholds: Tensor) -> Tensor:
    """[M] the first exit (from 0) whose threshold each image's confidence reaches."""
    return (confidences >= thresholds).int().argmax(dim=1)  # of several maxima, the first


def _percent(correct: Tensor, leaves: Tensor) -> float:
    return 100 * int(correct.gather(1, leaves[:, None]).sum()) / len(leaves)
