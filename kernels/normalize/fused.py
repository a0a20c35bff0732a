"""Pixels to normalised floats in one pass: each byte read once, each value written once, mirrored on the way."""

# ruff: noqa: N803 - what is compiled in is upper case, as in Triton's own kernels
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import launch
from kernels.normalize.reference import scale_and_shift


@triton.jit
def normalize_kernel(
    images, flips, out, scale, shift,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, FLIP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    SIZE: tl.constexpr = HEIGHT * WIDTH * 3
    image = tl.program_id(0).to(tl.int64)
    index = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = index < SIZE
    channel = index % 3
    source = index
    if FLIP:
        column = index // 3 % WIDTH
        mirrored = index + 3 * (WIDTH - 1 - 2 * column)
        source = tl.where(tl.load(flips + image) != 0, mirrored, index)
    x = tl.load(images + image * SIZE + source, mask=inside, other=0).to(tl.float32)
    factor = tl.where(channel == 0, scale[0], tl.where(channel == 1, scale[1], scale[2]))
    offset = tl.where(channel == 0, shift[0], tl.where(channel == 1, shift[1], shift[2]))
    y = tl.fma(x, factor, offset)
    tl.store(out + image * SIZE + index, y.to(out.dtype.element_ty), mask=inside)


def normalize(
    images: Tensor, mean: Sequence[float], std: Sequence[float], out: Tensor, flip: Tensor | None = None
) -> Tensor:
    """Fused form of reference.normalize."""
    images = images.contiguous()
    n, height, width, _ = images.shape
    scale, shift = scale_and_shift(mean, std)
    size = height * width * 3
    block = min(triton.next_power_of_2(size), 4096)
    flips = images if flip is None else flip.contiguous()  # any address does where nothing is read from it
    launch(
        normalize_kernel, (n, triton.cdiv(size, block)), images.device,
        images, flips, out, tuple(scale), tuple(shift),
        HEIGHT=height, WIDTH=width, FLIP=flip is not None, BLOCK=block, num_warps=max(1, min(8, block // 256)),
    )  # fmt: skip
    return out
