"""Batches out of plain pixels (CIFAR): cut from the memory map, nothing to decode."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from functools import partial

import numpy as np

from dataloading.assembly import Assembly, Target, handed_over
from dataloading.bad_images import BadImages
from dataloading.batch import Batch
from dataloading.chunk import Chunk, advised, chunks
from dataloading.storage import Storage
from dataloading.stream import Plan
from dataloading.worker_threads import worker_threads

_CHUNK = 1024  # images


class PixelReader:
    """Turns plans into batches; every row of the index must be flagged PIXELS."""

    def __init__(self, target: Target, num_threads: int) -> None:
        self.target, self.num_threads = target, num_threads
        self.bad_images = BadImages(target.index, Storage(target.index, num_threads))
        self._pool = worker_threads(num_threads, "cut")

    def batches(self, plans: Iterable[Plan]) -> Generator[Batch, None, None]:
        """One batch a plan, in order, `config.prefetch` of them made ahead."""
        return handed_over(self.target, self._assembled(plans), "pixel loader")

    def close(self) -> None:
        self._pool.shutdown()
        self.bad_images.storage.close()

    def _assembled(self, plans: Iterable[Plan]) -> Generator[Assembly, None, None]:
        assemblies = (Assembly(self.target, plan) for plan in advised(plans, self.bad_images))
        for chunk in chunks(assemblies, _CHUNK):
            chunk.read(self.bad_images)
            chunk.put_regions(partial(_region, chunk, chunk.ids, chunk.inside), self._pool, self.num_threads)
            if chunk.is_last:
                chunk.assembly.send()
                yield chunk.assembly


def _region(chunk: Chunk, ids: np.ndarray, inside: np.ndarray, i: int) -> np.ndarray:
    index = chunk.assembly.target.index
    top, left, height, width = inside[i]
    whole = chunk.data[i].reshape(index.heights[ids[i]], index.widths[ids[i]], 3)
    return whole[top : top + height, left : left + width]
