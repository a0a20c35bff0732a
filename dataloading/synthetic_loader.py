"""Random pixels that are already on the device: what training costs when loading costs next to nothing."""

from __future__ import annotations

from collections.abc import Generator, Iterable

import numpy as np
import torch

from dataloading.assembly import Target
from dataloading.batch import Batch
from dataloading.stream import Plan

POOL = 256  # images: 39 MB at 224 px


class SyntheticReader:
    """Random images, made once, with the labels of the plan's rows. An image's pixels follow from its id alone, so that
    any number of ranks sees the same batches; every `POOL`-th has the same ones.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self._pool: torch.Tensor | None = None

    def batches(self, plans: Iterable[Plan]) -> Generator[Batch, None, None]:
        device = self.target.device
        for plan in plans:
            labels = torch.from_numpy(self.target.index.labels[plan.ids].astype(np.int64))
            mask = None if plan.mask is None else torch.from_numpy(plan.mask).to(device)
            yield Batch(
                self._pixels(plan.ids),
                labels.to(device, non_blocking=True),
                plan.ids,
                mask,
                normalization=self.target.normalization,
            )

    def close(self) -> None:
        self._pool = None

    def _pixels(self, ids: np.ndarray) -> torch.Tensor:
        device = self.target.device
        if self._pool is None:
            size = self.target.config.image_size
            generator = torch.Generator(device).manual_seed(0)
            shape = (POOL, size, size, 3)
            self._pool = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator, device=device)
        return self._pool[torch.from_numpy(ids % POOL).to(device, non_blocking=True)]
