"""Random pixels that are already on the device: what training costs when loading costs nothing."""

from __future__ import annotations

from collections.abc import Generator, Iterable

import numpy as np
import torch

from dataloading.assembly import Target
from dataloading.batch import Batch
from dataloading.stream import Plan


class SyntheticReader:
    """Batches of the same random images, made once for each batch size, with the labels of the plan's rows."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._images: dict[int, torch.Tensor] = {}

    def batches(self, plans: Iterable[Plan]) -> Generator[Batch, None, None]:
        device = self.target.device
        for plan in plans:
            labels = torch.from_numpy(self.target.index.labels[plan.ids].astype(np.int64))
            mask = None if plan.mask is None else torch.from_numpy(plan.mask).to(device)
            yield Batch(
                self._pixels(len(plan)),
                labels.to(device, non_blocking=True),
                plan.ids,
                mask,
                normalization=self.target.normalization,
            )

    def close(self) -> None:
        self._images.clear()

    def _pixels(self, n: int) -> torch.Tensor:
        if n not in self._images:
            target, size = self.target, self.target.config.image_size
            generator = torch.Generator(target.device).manual_seed(0)
            shape = (n, size, size, 3)
            self._images[n] = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator, device=target.device)
        return self._images[n]
