"""Consecutive samples of one plan on their way: their bytes, and the bad ones among them replaced."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Executor

import numpy as np

from dataloading.assembly import Assembly
from dataloading.bad_images import BadImages
from dataloading.header import BadImageError
from dataloading.resize import resize_into
from dataloading.stream import Plan

_TOGETHER = 8  # images one thread resizes and then mirrors: 1.2 MB at 224 pixels, still in a core's cache


class Chunk:
    """The samples `part` of an assembly's plan.

    places   [k] those of them that are loaded: all but the masked
    data     k arrays of bytes, views of a memory map where they lie in one; held until a decoder is done with them
    is_last  whether the assembly is complete with this chunk
    """

    def __init__(self, assembly: Assembly, part: slice, is_last: bool) -> None:
        self.assembly, self.part, self.is_last = assembly, part, is_last
        self.places = np.arange(part.start, part.stop)
        self.data: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.places)

    @property
    def ids(self) -> np.ndarray:
        """[k] rows of the loaded samples."""
        return self.assembly.plan.ids[self.places]

    @property
    def inside(self) -> np.ndarray:
        """[k, 4] regions of the stored images that are needed: (top, left, height, width)."""
        index = self.assembly.target.index
        return self.assembly.plan.geometry[self.places].inside(index.heights[self.ids], index.widths[self.ids])

    def read(self, bad_images: BadImages) -> None:
        """Fill `data`. What is known or seen to be unreadable is replaced here, before a decoder meets it."""
        mask = self.assembly.plan.mask
        if mask is not None:
            self.places = self.places[mask[self.places]]
        self.data, suspects = [], []
        for place, row, data in zip(self.places, self.ids, bad_images.storage.read(self.ids), strict=True):
            if isinstance(data, BadImageError) or bad_images.suspect(row, data):
                suspects.append(place)
            else:
                self.data.append(data)
        if suspects and not self.replace(bad_images, suspects):
            self.data = [bad_images.storage.read_one(row) for row in self.ids]  # suspected of nothing: all are readable

    def replace(self, bad_images: BadImages, places: Iterable[int]) -> bool:
        """Judge the samples at `places`; where some are unreadable, replace them, read again and return True."""
        plan = self.assembly.plan
        verdicts = ((int(place), bad_images.verdict(int(plan.ids[place]))) for place in places)
        bad = {place: reason for place, reason in verdicts if reason is not None}
        if bad:
            self.assembly.plan = bad_images.replace(plan, bad, self.assembly.target.config)
            self.read(bad_images)
        return bool(bad)

    def put_regions(self, region: Callable[[int], np.ndarray], pool: Executor, num_threads: int) -> None:
        """Resize `region(i)`, the pixels of the k samples' `inside`, into the assembly, on the pool's threads."""
        assembly, inside, geometry = self.assembly, self.inside, self.assembly.plan.geometry
        sample_at = {place: i for i, place in enumerate(self.places.tolist())}

        def put(part: slice) -> None:
            pixels = assembly.room(part)
            for out, place in zip(pixels, range(part.start, part.stop), strict=True):
                i = sample_at.get(place)
                if i is None:
                    out.zero_()
                else:
                    crop, resize = geometry.crop[place].tolist(), geometry.resize[place].tolist()
                    resize_into(out, region(i), inside[i].tolist(), crop, resize, geometry.window[place].tolist())
            assembly.put(part)

        step = max(1, min(_TOGETHER, (self.part.stop - self.part.start) // (2 * num_threads)))
        starts = range(self.part.start, self.part.stop, step)
        list(pool.map(put, [slice(start, min(start + step, self.part.stop)) for start in starts]))


def chunks(assemblies: Iterable[Assembly], size: int) -> Generator[Chunk, None, None]:
    """The assemblies in order, in chunks of up to `size` samples."""
    for assembly in assemblies:
        num_samples = len(assembly.plan)
        for start in range(0, num_samples, size):
            stop = min(start + size, num_samples)
            yield Chunk(assembly, slice(start, stop), stop == num_samples)


def advised(plans: Iterable[Plan], bad_images: BadImages) -> Generator[Plan, None, None]:
    """The plans, the bytes of each asked for while the one before it is worked on."""
    held: Plan | None = None
    for plan in plans:
        bad_images.storage.advise(plan.ids)
        if held is not None:
            yield held
        held = plan
    if held is not None:
        yield held
