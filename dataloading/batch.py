"""What the loader hands to the trainer: images on the device, with the rows they came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """One rank's share of a loaded batch.

    images  [n, 3, H, W], normalised, channels-last memory, the training dtype, on the device
    labels  [n] int64, on the device
    ids     [n] int64 rows of the split's index (on the host), after replacement of unreadable images
    mask    [n] bool or None; False marks the padding that evens out the ranks' last evaluation batch
    num_replaced  images of this batch that could not be read and whose place another image took
    """

    images: Tensor
    labels: Tensor
    ids: np.ndarray
    mask: Tensor | None = None
    num_replaced: int = 0
    replaced: tuple[tuple[int, str], ...] = field(default=())  # (row, reason) of every image that was replaced

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    def crossed_halves(self) -> Iterator[tuple[Batch, Batch]]:
        """(a, b), then (b, a): each half trains once, with the other as its meta half (METHOD: training)."""
        if len(self) % 2:
            raise ValueError(f"a loaded batch of {len(self)} images has no two equal halves; load an even number")
        middle = len(self) // 2
        a, b = self[:middle], self[middle:]
        yield a, b
        yield b, a

    def micro_batches(self, num_parts: int) -> list[Batch]:
        """`num_parts` equal consecutive parts (views): what gradient accumulation runs one by one."""
        if len(self) % num_parts:
            raise ValueError(f"{len(self)} images cannot be split into {num_parts} equal micro-batches")
        size = len(self) // num_parts
        return [self[start : start + size] for start in range(0, len(self), size)]

    def __getitem__(self, part: slice) -> Batch:
        mask = None if self.mask is None else self.mask[part]
        return Batch(self.images[part], self.labels[part], self.ids[part], mask)

    def to(self, device: torch.device) -> Batch:
        mask = None if self.mask is None else self.mask.to(device, non_blocking=True)
        return Batch(
            self.images.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.ids,
            mask,
            self.num_replaced,
            self.replaced,
        )
