"""What the loader hands to the trainer: pixels on the device, with the rows they came from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from kernels.normalize import normalize


@dataclass(frozen=True)
class Normalization:
    """Mean and standard deviation of each channel, of pixels in 0..1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Batch:
    """One rank's share of a loaded batch.

    images  as it leaves the loader uint8 [n, H, W, 3], a quarter of float32's bytes to move; after `normalized`
            [n, 3, H, W] in the training dtype; on the device
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
    normalization: Normalization | None = None  # of images that are uint8 still
    flip: Tensor | None = None  # [n] bool, those of them still to be mirrored

    def normalized(self, dtype: torch.dtype, memory_format: torch.memory_format = torch.channels_last) -> Batch:
        """The batch ready for the net: mirrored and normalised on the device in one pass, rounded once to `dtype`.

        The pass keeps the channels last; another memory format costs a copy.
        """
        if self.images.dtype != torch.uint8:
            return replace(self, images=self.images.to(dtype, memory_format=memory_format))
        assert self.normalization is not None, "a uint8 batch carries its normalization"
        single = torch.float32 if dtype == torch.float64 else dtype
        images = normalize(self.images, self.normalization.mean, self.normalization.std, single, flip=self.flip)
        return replace(self, images=images.to(dtype, memory_format=memory_format), normalization=None, flip=None)

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
        flip = None if self.flip is None else self.flip[part]
        images, labels, ids = self.images[part], self.labels[part], self.ids[part]
        return Batch(images, labels, ids, mask, normalization=self.normalization, flip=flip)
