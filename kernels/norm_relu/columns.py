"""Activations as the kernels see them, a matrix whose columns each belong to one channel, and who takes what of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

TILE = 2048  # values of a program at a time: 16 a thread
COLUMNS = 256  # of a tile, at most
PROGRAMS = 512  # that share a reduction; a number of the code, not of the GPU: sums are the same on all of them
PARTS, CHANNELS = 512, 4  # partial sums that are added up at a time, of so many channels


@dataclass(frozen=True)
class Columns:
    """x [N, C, H, W] as a matrix [rows, width] of dense memory, the last row possibly short; a column is one channel's.

    inner   values that follow one another of a channel: 1 channels-last, H * W contiguous
    period  values after which channels begin anew: of a pixel or of an image
    """

    x: Tensor
    channels: int
    inner: int
    period: int
    width: int
    block_w: int

    @classmethod
    def of(cls, x: Tensor) -> Columns:
        channels, (height, width) = x.shape[1], x.shape[2:]
        last = x.is_contiguous(memory_format=torch.channels_last)
        inner = 1 if last else height * width
        x = x if last else x.contiguous()
        period = channels * inner
        aligned = period * (16 // math.gcd(16, period))
        wide = aligned * max(1, COLUMNS // aligned)
        # The widest block of which at most a ninth is padding.
        block_w = next(w for w in (COLUMNS, 128, 64, 32, 16) if _ceil(wide, w) * w * 8 <= wide * 9)
        return cls(x, channels, inner, period, wide, block_w)

    @property
    def rows(self) -> int:
        return _ceil(self.x.numel(), self.width)

    @property
    def block_r(self) -> int:
        return TILE // self.block_w

    def reduced(self) -> tuple[int, int]:
        """(shares, rows of each) of a pass that adds up."""
        most = _ceil(self.rows, self.block_r)
        splits = min(most, max(1, PROGRAMS // _ceil(self.width, self.block_w)))
        each = _ceil(most, splits) * self.block_r
        return _ceil(self.rows, each), each

    def written(self) -> tuple[int, int]:
        """The same of a pass that writes: four tiles each, so that a column's coefficients are read once for them."""
        each = 4 * self.block_r
        return _ceil(self.rows, each), each

    def grid(self, splits: int) -> tuple[int]:
        return (splits * _ceil(self.width, self.block_w),)

    @property
    def constants(self) -> dict[str, int]:
        return {"BLOCK_R": self.block_r, "BLOCK_W": self.block_w, "num_warps": 4}

    def partial(self, splits: int) -> tuple[Tensor, Tensor]:
        sums = torch.empty(2, splits, self.width, dtype=torch.float32, device=self.x.device)
        return sums[0], sums[1]

    def totals(self) -> tuple[Tensor, Tensor]:
        values = torch.empty(2, self.channels, dtype=torch.float32, device=self.x.device)
        return values[0], values[1]

    def beside(self, t: Tensor) -> tuple[Tensor, int]:
        """`t`, shaped as x, and the values from one of its periods to the next; copied where it has no such order.

        A gradient is often a slice of a concatenation's: read where it is."""
        sizes, strides = t.shape, t.stride()
        n, c, h, w = (size > 1 for size in sizes)
        if self.inner == 1:
            apart = next((s for s, many in ((strides[3], w), (strides[2], h), (strides[0], n)) if many), self.period)
            expected = (sizes[2] * sizes[3] * apart, 1, sizes[3] * apart, apart)
        else:
            apart = strides[0] if n else self.period
            expected = (apart, self.inner, sizes[3], 1)
        same = all(s == e for s, e, many in zip(strides, expected, (n, c, h, w), strict=True) if many)
        if same and apart >= self.period:
            return t, apart
        return torch.empty_like(self.x, dtype=t.dtype).copy_(t), self.period

    @property
    def per_channel(self) -> tuple[tuple[int], dict[str, int]]:
        """Grid and constants of what adds partial sums up: a few channels, many sums at a time."""
        return (_ceil(self.channels, CHANNELS),), {"BLOCK_P": PARTS, "BLOCK_C": CHANNELS, "num_warps": 8}


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
