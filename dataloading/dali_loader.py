"""Batches through DALI: regions decoded from bytes that stay where they lie, a few chunks ahead."""

from __future__ import annotations

import io
import logging
from collections import deque
from collections.abc import Generator, Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image

from dataloading import dali_pipelines as graph
from dataloading.assembly import Assembly, Target, handed_over
from dataloading.bad_images import BadImages
from dataloading.batch import Batch
from dataloading.chunk import Chunk, advised, chunks
from dataloading.heap import trim_heap
from dataloading.in_flight import InFlight
from dataloading.index import PIXELS
from dataloading.storage import Storage
from dataloading.stream import Plan
from dataloading.worker_threads import worker_threads

log = logging.getLogger(__name__)

_QUEUE = 2  # chunks inside DALI at once: one being decoded, one that its threads find ready
_TRIM_IMAGES = 4096  # decoded between two trims of the heap
_CPU_CHUNK, _GPU_CHUNK = 64, 256  # images; the GPU's hardware decoder wants many at once


class DaliReader:
    """Turns plans into batches.

    On a GPU the whole graph is DALI's: resize and crop run there, and the decoder where `decode_on_gpu` says. On a CPU
    DALI decodes regions and torch resizes them (resize.py), at half the cost of DALI's own resize.

    gpu_graph_on_cpu  run the GPU's graph on the CPU: how it is tested where there is no GPU
    """

    def __init__(
        self, target: Target, num_threads: int, *, decode_on_gpu: bool = False, gpu_graph_on_cpu: bool = False
    ) -> None:
        self.target, self.num_threads = target, num_threads
        self.on_gpu = target.device.type == "cuda"
        self.whole_graph = self.on_gpu or gpu_graph_on_cpu
        self.chunk_size = _GPU_CHUNK if decode_on_gpu else _CPU_CHUNK
        self.decoder = _decoder(target, decode_on_gpu)
        self.bad_images = BadImages(target.index, Storage(target.index, num_threads))
        self._foreign: set[int] = set()  # rows that are handed to DALI as BMP, since it does not know their form
        self._pool = worker_threads(num_threads, "resize")
        self._in_flight = InFlight(target.stream)
        self._decoded = 0  # images since the heap was trimmed
        self._pipeline = self._built()

    def batches(self, plans: Iterable[Plan]) -> Generator[Batch, None, None]:
        """One batch a plan, in order, `config.prefetch` of them made ahead."""
        return handed_over(self.target, self._assembled(plans), "dali loader")

    def close(self) -> None:
        self._pool.shutdown()
        self.bad_images.storage.close()
        self._pipeline = None

    def _built(self) -> Any:
        if not self.whole_graph:
            return graph.region_pipeline(self.chunk_size, self.num_threads, _QUEUE)
        device_id = (self.target.device.index or 0) if self.on_gpu else None
        size = self.target.config.image_size
        return graph.image_pipeline(self.chunk_size, self.num_threads, _QUEUE, size, device_id, self.decoder)

    def _assembled(self, plans: Iterable[Plan]) -> Generator[Assembly, None, None]:
        waiting: deque[Chunk] = deque()
        plans = advised(plans, self.bad_images)
        assemblies = (Assembly(self.target, plan, decoded_on_device=self.on_gpu) for plan in plans)
        try:
            for chunk in chunks(assemblies, self.chunk_size):
                chunk.read(self.bad_images)
                self._feed(chunk)
                waiting.append(chunk)
                if len(waiting) == _QUEUE:
                    yield from self._finish(waiting)
            while waiting:
                yield from self._finish(waiting)
        finally:
            if waiting:
                self._pipeline = self._built()  # left in the middle: what is queued in it belongs to nobody

    def _feed(self, chunk: Chunk) -> None:
        if not len(chunk):
            return
        for i, row in enumerate(chunk.ids.tolist()):
            if row in self._foreign or self.target.index.flags[row] & PIXELS:
                chunk.data[i] = _as_bmp(self.bad_images.pixels(row))
        geometry, inside = chunk.assembly.plan.geometry[chunk.places], chunk.inside
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

    def _finish(self, waiting: deque[Chunk]) -> Generator[Assembly, None, None]:
        """Collect the oldest chunk; where its plan is complete, hand it on."""
        outputs = self._outputs(waiting)
        chunk = waiting.popleft()
        if self.whole_graph:
            self._put_images(chunk, outputs)
            self._in_flight.hold(chunk.data)  # outputs come before they are made: the decoder may be at it still
        else:
            chunk.put_regions(lambda i: np.asarray(outputs[i]), self._pool, self.num_threads)
        self._decoded += len(chunk)
        if self._decoded >= _TRIM_IMAGES:
            self._decoded = 0
            trim_heap()
        if chunk.is_last:
            chunk.assembly.send()
            yield chunk.assembly

    def _outputs(self, waiting: deque[Chunk]) -> Any:
        """DALI's output for the oldest chunk; None where nothing of the chunk is loaded."""
        while len(waiting[0]):
            try:
                stream = self.target.stream if self.on_gpu else None
                (outputs,) = self._pipeline.share_outputs(cuda_stream=stream)
                self._pipeline.release_outputs()  # the dynamic executor leaves them to whoever holds them
                return outputs
            except (RuntimeError, IndexError, ValueError) as error:
                self._repair(waiting, error)
        return None

    def _repair(self, waiting: deque[Chunk], error: Exception) -> None:
        """DALI names no culprit, not even the chunk, and its pipeline is dead: judge every image under way, replace the
        unreadable ones, build the pipeline anew and feed it again."""
        rows = {int(row) for chunk in waiting for row in chunk.ids}
        list(self._pool.map(self.bad_images.verdict, rows))  # in parallel; the verdicts are kept
        num_changed = sum(chunk.replace(self.bad_images, chunk.places) for chunk in waiting)
        if not num_changed:
            # All are readable, so one is of a form that DALI does not know.
            if rows <= self._foreign:
                raise error
            log.warning("DALI cannot decode one of %d readable images, Pillow will: %s", len(rows), error)
            self._foreign |= rows
        self._pipeline = self._built()
        for chunk in waiting:
            self._feed(chunk)

    def _put_images(self, chunk: Chunk, outputs: Any) -> None:
        part, room = chunk.part, chunk.assembly.room(chunk.part)
        with self.target.on_stream():
            if outputs is None:
                room.zero_()
            elif len(chunk) == len(room):
                room.copy_(torch.utils.dlpack.from_dlpack(outputs.as_tensor()), non_blocking=True)
            else:
                room.zero_()
                at = torch.from_numpy(chunk.places - part.start).to(room.device)
                room[at] = torch.utils.dlpack.from_dlpack(outputs.as_tensor())
        chunk.assembly.put(part)


def _decoder(target: Target, on_gpu: bool) -> graph.Decoder:
    """Buffers of the GPU's JPEG unit are made for all but a hundredth of the images; a larger one makes them grow."""
    load = target.config.hardware_decoder_load
    if not on_gpu or not load:
        return graph.Decoder(on_gpu)
    height, width = (int(np.percentile(side, 99)) for side in (target.index.heights, target.index.widths))
    return graph.Decoder(on_gpu, load, height, width)


def _as_bmp(pixels: np.ndarray) -> np.ndarray:
    """[size] uint8: the pixels in a file format that every decoder knows, without loss."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "BMP")
    return np.frombuffer(file.getvalue(), np.uint8)
