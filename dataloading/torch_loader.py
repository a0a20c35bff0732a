"""Batches through torch's DataLoader and Pillow: what one would run without DALI, and what DALI is checked against."""

from __future__ import annotations

import io
from collections.abc import Generator, Iterable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dataloading.assembly import Assembly, Target, handed_over
from dataloading.bad_images import BadImages
from dataloading.batch import Batch
from dataloading.config import DataConfig
from dataloading.header import BadImageError
from dataloading.index import NOT_JPEG, PIXELS, Index
from dataloading.resize import resized_window
from dataloading.storage import Storage
from dataloading.stream import Plan

_Loaded = tuple[Tensor, Plan]


class TorchReader:
    """Turns plans into batches, a plan a worker process at a time."""

    def __init__(self, target: Target, num_workers: int) -> None:
        self.target, self.num_workers = target, num_workers

    def batches(self, plans: Iterable[Plan]) -> Generator[Batch, None, None]:
        """One batch a plan, in order; every worker makes `config.prefetch` of them ahead."""
        return handed_over(self.target, self._assembled(plans), "torchvision loader")

    def close(self) -> None:
        """Workers end with the iterator that started them."""

    def _assembled(self, plans: Iterable[Plan]) -> Generator[Assembly, None, None]:
        loader: DataLoader[Any] = DataLoader(
            _Images(self.target.index, self.target.config),
            batch_size=None,
            sampler=plans,
            num_workers=self.num_workers,
            prefetch_factor=self.target.config.prefetch,
            collate_fn=_unchanged,
            multiprocessing_context="fork",  # the index is shared, not copied; workers touch neither CUDA nor DALI
        )
        for pixels, plan in loader:
            assembly = Assembly(self.target, plan)
            assembly.room(part := slice(0, len(plan))).copy_(pixels)
            assembly.put(part)
            assembly.send()
            yield assembly


class _Images(Dataset[_Loaded]):
    """Maps a plan to its pixels, uint8 [n, S, S, 3]."""

    def __init__(self, index: Index, config: DataConfig) -> None:
        self.index, self.config = index, config

    @cached_property
    def _bad_images(self) -> BadImages:  # made in the worker, which maps the files for itself
        return BadImages(self.index, Storage(self.index))

    def __getitem__(self, plan: Plan) -> _Loaded:
        pixels = np.zeros((len(plan), self.config.image_size, self.config.image_size, 3), np.uint8)
        for place in range(len(plan)):
            if plan.mask is not None and not plan.mask[place]:
                continue
            try:
                image = self._decoded(int(plan.ids[place]))
            except BadImageError as error:
                reason = self._bad_images.verdict(int(plan.ids[place])) or error.reason
                plan = self._bad_images.replace(plan, {place: reason}, self.config)
                if plan.mask is not None:
                    continue
                image = self._decoded(int(plan.ids[place]))
            pixels[place] = np.asarray(_cut(image, plan, place, self.config.image_size))
        return torch.from_numpy(pixels), plan

    def _decoded(self, row: int) -> Image.Image:
        """The whole image; raises BadImageError."""
        index = self.index
        if index.flags[row] & (NOT_JPEG | PIXELS):
            return Image.fromarray(self._bad_images.pixels(row))
        data = self._bad_images.storage.read_one(row)
        try:
            image = Image.open(io.BytesIO(data.tobytes()), formats=["JPEG"])
            if image.size == (index.widths[row], index.heights[row]):
                return image.convert("RGB")
        except (OSError, ValueError, SyntaxError):
            pass  # the judge says what it is
        return Image.fromarray(self._bad_images.pixels(row))


def _cut(image: Image.Image, plan: Plan, place: int, size: int) -> Image.Image:
    geometry = plan.geometry
    top, left, height, width = geometry.crop[place].tolist()
    image = image.crop((left, top, left + width, top + height))  # black outside the image
    (height, width), (top, left) = geometry.resize[place].tolist(), geometry.window[place].tolist()
    if (image.height, image.width) != (height, width) or (height, width) != (size, size):
        image = resized_window(image, height, width, top, left, size)
    return image


def _unchanged(loaded: Any) -> Any:
    return loaded
