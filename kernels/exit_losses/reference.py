"""Losses, confidences and hits of every exit in plain torch: the specification of the fused kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class ExitLosses(NamedTuple):
    """What a batch of n samples says at K exits.

    losses       [n, K] float32 (float64 for float64 logits), cross-entropy; carries the gradient
    confidences  [n, K] of the same dtype, the largest softmax; no gradient
    top1, top5   [n, K] bool, whether the label ranks first, among the first five; no gradient
    """

    losses: Tensor
    confidences: Tensor
    top1: Tensor
    top5: Tensor


def exit_losses(logits: Sequence[Tensor], labels: Tensor, label_smoothing: float = 0.0) -> ExitLosses:
    """Differentiable any number of times, in reverse and in forward mode (METHOD: training, l_ik and c_ik)."""
    losses, confidences, ranks = [], [], []
    for z in logits:
        z = at_least_float32(z)
        log_p = torch.log_softmax(z, dim=1)
        loss = -log_p.gather(1, labels[:, None])[:, 0]
        if label_smoothing:
            loss = (1 - label_smoothing) * loss - label_smoothing * log_p.mean(dim=1)
        losses.append(loss)
        with torch.no_grad():
            confidences.append(torch.softmax(z, dim=1).amax(dim=1))
            ranks.append(rank_of_label(z, labels))
    rank = torch.stack(ranks, dim=1)
    return ExitLosses(torch.stack(losses, dim=1), torch.stack(confidences, dim=1), rank < 1, rank < 5)


def exit_losses_jvp(
    logits: Sequence[Tensor], tangents: Sequence[Tensor], labels: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """[n, K] derivative of the losses along the logits' tangents: sum_c softmax_c z'_c - target . z'."""
    columns = []
    for z, dz in zip(logits, tangents, strict=True):
        z, dz = at_least_float32(z), at_least_float32(dz)
        target = dz.gather(1, labels[:, None])[:, 0]
        if label_smoothing:
            target = (1 - label_smoothing) * target + label_smoothing * dz.mean(dim=1)
        columns.append((torch.softmax(z, dim=1) * dz).sum(dim=1) - target)
    return torch.stack(columns, dim=1)


def rank_of_label(z: Tensor, labels: Tensor) -> Tensor:
    """[n] how many classes beat the label: a larger logit, or an equal one at a lower index (torch.argmax's order).

    Counting needs no sort. A comparison with NaN fails, so every NaN beats the label and is beaten by none.
    """
    own = z.gather(1, labels[:, None])
    at_or_after = torch.arange(z.shape[1], device=z.device) >= labels[:, None]
    beaten = (z < own) | ((z == own) & at_or_after)
    return (~beaten).sum(dim=1)


def at_least_float32(z: Tensor) -> Tensor:
    return z if z.dtype == torch.float64 else z.float()
