"""Batches through DALI: regions decoded from bytes that stay where they lie, a few chunks ahead."""

from __future__ import annotations

import io
import logging
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dataloading import dali_pipelines as graph
from dataloading.ahead import ahead
from dataloading.assembly import Assembly, Target
from dataloading.bad_images import BadImages
from dataloading.batch import Batch
from dataloading.header import BadImageError
from dataloading.index import PIXELS
from dataloading.resize import resize_into
from dataloading.storage import Storage
from dataloading.stream import Plan

log = logging.getLogger(__name__)

_QUEUE = 2  # chunks inside DALI at once: one being decoded, one that its threads find ready
_CPU_CHUNK, _GPU_CHUNK = 64, 256  # images; the GPU's hardware decoder wants many at once


class _Chunk:
    """Consecutive samples of one plan, on their way."""

    def __init__(self, assembly: Assembly, part: slice, is_last: bool) -> None:
        self.assembly, self.part, self.is_last = assembly, part, is_last
        self.places = np.arange(part.start, part.stop)  # without the masked ones
        self.data: list[np.ndarray] = []  # their bytes; held until DALI is done with them
        self.transcoded = False

    @property
    def ids(self) -> np.ndarray:
        return self.assembly.plan.ids[self.places]


class DaliReader:
    """Turns plans into batches.

    decode_on_gpu  decode, resize and crop on the device; else the regions are decoded by DALI on the CPU and resized by
                   torch (resize.py), half the cost of DALI's own
    gpu_graph_on_cpu  run the graph of the GPU on the CPU: the test of it where there is no GPU
    """

    def __init__(
        self, target: Target, num_threads: int, *, decode_on_gpu: bool = False, gpu_graph_on_cpu: bool = False
    ) -> None:
        self.target, self.num_threads = target, num_threads
        self.whole_graph, self.decode_on_gpu = decode_on_gpu or gpu_graph_on_cpu, decode_on_gpu
        self.chunk_size = _GPU_CHUNK if decode_on_gpu else _CPU_CHUNK
        self.storage = Storage(target.index, num_threads)
        self.bad_images = BadImages(target.index, self.storage)
        self._foreign: set[int] = set()  # rows that Pillow reads and DALI does not
        self._pool = ThreadPoolExecutor(num_threads, "resize")
        self._all_pixels = bool(len(target.index) and (target.index.flags & PIXELS).all())
        self._pipeline = None if self._all_pixels else self._build()

    def batches(self, plans: Iterable[Plan]) -> Generator[Batch, None, None]:
        """One batch a plan, in order, `config.prefetch` of them made ahead."""
        assembled = ahead(self._assembled(plans), self.target.config.prefetch, "dali loader")
        try:
            for assembly in assembled:
                yield assembly.batch()
        finally:
            assembled.close()

    def close(self) -> None:
        self._pool.shutdown()
        self.storage.close()
        self._pipeline = None

    def _build(self) -> Any:
        if not self.whole_graph:
            return graph.region_pipeline(self.chunk_size, self.num_threads, _QUEUE)
        device_id = self.target.device.index or 0 if self.decode_on_gpu else None
        return graph.image_pipeline(self.chunk_size, self.num_threads, _QUEUE, self.target.config.image_size, device_id)

    def _assembled(self, plans: Iterable[Plan]) -> Generator[Assembly, None, None]:
        waiting: deque[_Chunk] = deque()
        try:
            for chunk in self._chunks(plans):
                self._prepare(chunk)
                self._feed(chunk)
                waiting.append(chunk)
                if len(waiting) == _QUEUE:
                    yield from self._finish(waiting)
            while waiting:
                yield from self._finish(waiting)
        finally:
            if waiting and self._pipeline is not None:
                self._pipeline = self._build()  # left in the middle: what is queued in it belongs to nobody

    def _chunks(self, plans: Iterable[Plan]) -> Generator[_Chunk, None, None]:
        for plan in _advised(plans, self.storage):
            assembly = Assembly(self.target, plan, decoded_on_device=self.decode_on_gpu)
            for start in range(0, len(plan), self.chunk_size):
                stop = min(start + self.chunk_size, len(plan))
                yield _Chunk(assembly, slice(start, stop), stop == len(plan))

    def _prepare(self, chunk: _Chunk) -> None:
        """Read the chunk's bytes; what is known or seen to be unreadable is replaced here, before DALI meets it."""
        self._drop_masked(chunk)
        chunk.data, bad = [], {}
        for place, row, data in zip(
            chunk.places.tolist(), chunk.ids.tolist(), self.storage.read(chunk.ids), strict=True
        ):
            if isinstance(data, BadImageError) or self.bad_images.suspect(row, data):
                reason = self.bad_images.verdict(row)
                if reason is not None:
                    bad[place] = reason
            chunk.data.append(data)
        if bad:
            self._replace(chunk, bad)
            return
        if self._pipeline is not None:
            for i, row in enumerate(chunk.ids.tolist()):
                if row in self._foreign or self.target.index.flags[row] & PIXELS:
                    chunk.data[i] = _as_bmp(self.bad_images.pixels(row))

    def _replace(self, chunk: _Chunk, bad: dict[int, str]) -> None:
        assembly = chunk.assembly
        assembly.plan, reported = self.bad_images.replace(assembly.plan, bad, self.target.config)
        assembly.replaced.extend(reported)
        self._prepare(chunk)

    def _drop_masked(self, chunk: _Chunk) -> None:
        mask = chunk.assembly.plan.mask
        if mask is not None:
            chunk.places = chunk.places[mask[chunk.places]]

    def _feed(self, chunk: _Chunk) -> None:
        if self._pipeline is None or not len(chunk.places):
            return
        index, geometry = self.target.index, chunk.assembly.plan.geometry[chunk.places]
        inside = geometry.inside(index.heights[chunk.ids], index.widths[chunk.ids])
        feed = self._pipeline.feed_input
        feed(graph.ENCODED, chunk.data)
        feed(graph.START, inside[:, :2].copy())
        feed(graph.SHAPE, inside[:, 2:].copy())
        if self.whole_graph:
            feed(graph.PAD, geometry.crop[:, :2] - inside[:, :2])
            feed(graph.CROP, geometry.crop[:, 2:].copy())
            feed(graph.RESIZE, geometry.resize)
            feed(graph.WINDOW, geometry.window)
        self._pipeline.schedule_run()

    def _finish(self, waiting: deque[_Chunk]) -> Generator[Assembly, None, None]:
        """Collect the oldest chunk; where its plan is complete, hand it on."""
        outputs = self._outputs(waiting)
        chunk = waiting.popleft()
        if self.whole_graph and outputs is not None:
            self._put_images(chunk, outputs)
        else:
            self._put_regions(chunk, outputs)
        if chunk.is_last:
            chunk.assembly.send()
            yield chunk.assembly

    def _outputs(self, waiting: deque[_Chunk]) -> Any:
        """DALI's output for the oldest chunk; None where the chunk has nothing to decode."""
        while True:
            if self._pipeline is None or not len(waiting[0].places):
                return None
            try:
                (outputs,) = self._pipeline.share_outputs(
                    cuda_stream=self.target.stream if self.decode_on_gpu else None
                )
                self._pipeline.release_outputs()  # the dynamic executor leaves them to whoever holds them
                return outputs
            except (RuntimeError, IndexError, ValueError) as error:
                self._repair(waiting, error)

    def _repair(self, waiting: deque[_Chunk], error: Exception) -> None:
        """DALI names no culprit, and its pipeline is dead: judge every image of the oldest chunk, replace the unreadable
        ones, build the pipeline anew and feed it again."""
        oldest = waiting[0]
        reasons = list(self._pool.map(self.bad_images.verdict, oldest.ids.tolist()))
        bad = {int(p): reason for p, reason in zip(oldest.places, reasons, strict=True) if reason is not None}
        if bad:
            self._replace(oldest, bad)
        elif not oldest.transcoded:
            # All are readable: one has a form that DALI does not know, and none that it names. Pillow decodes them.
            log.warning(
                "DALI cannot decode one of %d readable images, Pillow does it from now on: %s", len(reasons), error
            )
            oldest.transcoded = True
            self._foreign.update(oldest.ids.tolist())
            self._prepare(oldest)
        else:
            raise error
        self._pipeline = self._build()
        for chunk in waiting:
            self._feed(chunk)

    def _put_images(self, chunk: _Chunk, outputs: Any) -> None:
        pixels = torch.from_dlpack(outputs.as_tensor())
        if len(chunk.places) == chunk.part.stop - chunk.part.start:
            chunk.assembly.put(chunk.part, pixels)
            return
        size = self.target.config.image_size
        whole = torch.zeros(chunk.part.stop - chunk.part.start, size, size, 3, dtype=torch.uint8, device=pixels.device)
        whole[torch.from_numpy(chunk.places - chunk.part.start).to(pixels.device)] = pixels
        chunk.assembly.put(chunk.part, whole)

    def _put_regions(self, chunk: _Chunk, outputs: Any) -> None:
        index, geometry = self.target.index, chunk.assembly.plan.geometry
        source_of = {place: i for i, place in enumerate(chunk.places.tolist())}
        inside = geometry[chunk.part].inside(
            *(side[chunk.assembly.plan.ids[chunk.part]] for side in (index.heights, index.widths))
        )

        def region(place: int) -> np.ndarray:
            i = source_of[place]
            if outputs is not None:
                return np.asarray(outputs[i])
            top, left, height, width = inside[place - chunk.part.start]
            row = int(chunk.assembly.plan.ids[place])
            whole = chunk.data[i].reshape(index.heights[row], index.widths[row], 3)
            return whole[top : top + height, left : left + width]

        def put(part: slice) -> None:
            pixels = self._scratch(part.stop - part.start)
            for i, place in enumerate(range(part.start, part.stop)):
                if place not in source_of:
                    pixels[i] = 0
                    continue
                g = geometry
                resize_into(
                    pixels[i],
                    region(place),
                    inside[place - chunk.part.start],
                    g.crop[place],
                    g.resize[place],
                    g.window[place],
                )
            chunk.assembly.put(part, pixels)

        list(self._pool.map(put, self._parts(chunk.part)))

    def _parts(self, part: slice) -> list[slice]:
        """Few enough samples at once that they are normalised while in the core's cache, enough to be worth a call."""
        step = max(1, 2**18 // (3 * self.target.config.image_size**2))
        return [slice(start, min(start + step, part.stop)) for start in range(part.start, part.stop, step)]

    def _scratch(self, n: int) -> Tensor:
        size = self.target.config.image_size
        return torch.empty(n, size, size, 3, dtype=torch.uint8)


def _advised(plans: Iterable[Plan], storage: Storage) -> Generator[Plan, None, None]:
    """The plans, the bytes of each asked for while the one before it is worked on."""
    held: Plan | None = None
    for plan in plans:
        storage.advise(plan.ids)
        if held is not None:
            yield held
        held = plan
    if held is not None:
        yield held


def _as_bmp(pixels: np.ndarray) -> np.ndarray:
    """[size] uint8: the pixels in a file format that every decoder knows, without loss."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "BMP")
    return np.frombuffer(file.getvalue(), np.uint8)
