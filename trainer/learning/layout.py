"""Strides: a compiled net and a fused step take tensors as they lie in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def laid_out_as(parameter: Tensor, values: Tensor) -> Tensor:
    """`values` with the strides of `parameter`, those of dimensions of one place too: a compiled net asks for them."""
    if values.stride() == parameter.stride():
        return values
    apart = [a != b for a, b, n in zip(values.stride(), parameter.stride(), parameter.shape, strict=True) if n > 1]
    return (
        torch.empty_like(parameter).copy_(values) if any(apart) else values.as_strided(values.shape, parameter.stride())
    )
