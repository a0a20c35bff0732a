"""Pixels to normalised floats in plain torch: the specification of the fused kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def scale_and_shift(mean: Sequence[float], std: Sequence[float]) -> tuple[list[float], list[float]]:
    """(x/255 - mean)/std = x * scale + shift, per channel."""
    scale = [1 / (255 * s) for s in std]
    return scale, [-m / s for m, s in zip(mean, std, strict=True)]


def normalize(
    images: Tensor, mean: Sequence[float], std: Sequence[float], out: Tensor, flip: Tensor | None = None
) -> Tensor:
    """Fills `out` [n, 3, H, W], channels last: one multiply-add in float32, rounded once to out's dtype."""
    scale, shift = (torch.tensor(v, device=images.device) for v in scale_and_shift(mean, std))
    if flip is not None:
        images = torch.where(flip[:, None, None, None], images.flip(2), images)
    out.permute(0, 2, 3, 1).copy_(torch.addcmul(shift, images.to(torch.float32), scale))
    return out
