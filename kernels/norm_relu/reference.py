"""Batch-norm in batch statistics and ReLU in plain torch: the specification of the fused kernel."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Running(NamedTuple):
    """What moves with every batch, in place: mean and variance [C], the number of batches (int64), the momentum."""

    mean: Tensor
    variance: Tensor
    num_batches: Tensor
    momentum: float


class NormReLU(NamedTuple):
    """y like x, with the gradient; the batch's mean and 1 / sqrt(variance + eps), [C] float32, without."""

    y: Tensor
    mean: Tensor
    invstd: Tensor


def norm_relu(x: Tensor, weight: Tensor, bias: Tensor, eps: float, running: Running | None = None) -> NormReLU:
    """Differentiable any number of times, in reverse and in forward mode."""
    mean, variance, momentum = (None, None, 0.0) if running is None else (running.mean, running.variance, running[3])
    y, batch_mean, invstd = torch.native_batch_norm(x, weight, bias, mean, variance, True, momentum, eps)
    if running is not None:
        running.num_batches.add_(1)
    return NormReLU(functional.relu(y), batch_mean.detach(), invstd.detach())


def norm_relu_jvp(
    x: Tensor,
    tangent: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    weight_tangent: Tensor,
    bias_tangent: Tensor,
) -> Tensor:
    """y' = weight / std * (t - mean t - xhat * mean (t xhat)) + weight' xhat + bias', where y is positive."""
    dims = (0, 2, 3)
    wide, t = x.to(weight.dtype), tangent.to(weight.dtype)
    mean, invstd, w, b, dw, db = (v[:, None, None] for v in (mean, invstd, weight, bias, weight_tangent, bias_tangent))
    xhat = (wide - mean) * invstd
    level, slope = t.mean(dims, keepdim=True), (t * xhat).mean(dims, keepdim=True)
    moved = w * invstd * (t - level - xhat * slope) + dw * xhat + db
    return torch.where((xhat * w + b).to(x.dtype) <= 0, 0.0, moved).to(x.dtype)
