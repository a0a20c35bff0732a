"""uint8 pixels to normalised images in the training dtype, channels last, optionally mirrored, in one pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.backend import Choice, backend_for
from kernels.normalize import reference

__all__ = ["normalize"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def normalize(
    images: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    out: Tensor | None = None,
    flip: Tensor | None = None,
    backend: Choice = "auto",
) -> Tensor:
    """[n, 3, H, W] in `dtype`, channels-last memory: (x/255 - mean)/std, one float32 multiply-add rounded once.

    images     [n, H, W, 3] uint8
    mean, std  3 numbers each, of pixels in 0..1; std positive
    dtype      float32, bfloat16 or float16
    out        filled and returned where given: [n, 3, H, W], channels last, of that dtype
    flip       [n] bool, samples to mirror left to right
    backend    see kernels.backend
    Raises ValueError for shapes, dtypes or layouts that do not fit.
    """
    if images.dim() != 4 or images.shape[3] != 3 or images.dtype != torch.uint8:
        raise ValueError(f"images are {images.dtype} {list(images.shape)}; give uint8 [n, H, W, 3]")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"mean {list(mean)}, std {list(std)}; give three numbers each, std positive")
    if dtype not in DTYPES:
        raise ValueError(f"normalised images cannot be {dtype}; choose float32, bfloat16 or float16")
    n, height, width, _ = images.shape
    if flip is not None and (flip.shape != (n,) or flip.dtype != torch.bool):
        raise ValueError(f"flip is {flip.dtype} {list(flip.shape)}; give bool [{n}], one per image")
    if out is None:
        out = torch.empty(n, 3, height, width, dtype=dtype, device=images.device, memory_format=torch.channels_last)
    elif out.shape != (n, 3, height, width) or out.dtype != dtype:
        raise ValueError(f"out is {out.dtype} {list(out.shape)}; it must be {dtype} {[n, 3, height, width]}")
    elif not out.is_contiguous(memory_format=torch.channels_last):
        raise ValueError("out is not channels last; allocate it with memory_format=torch.channels_last")
    if backend_for("normalize", images.device, backend) == "reference":
        return reference.normalize(images, mean, std, out, flip)
    import kernels.normalize.fused as fused  # importing kernels must not need triton

    return fused.normalize(images, mean, std, out, flip)
