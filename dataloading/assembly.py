"""One batch being put together: from regions in any order to uint8 pixels on the device."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataloading.ahead import ahead
from dataloading.batch import Batch, Normalization
from dataloading.buffers import Buffers
from dataloading.config import DataConfig
from dataloading.index import Index
from dataloading.stream import Plan


@dataclass(frozen=True)
class Target:
    """Where batches go.

    stream  on a CUDA device: the loader's own stream, so that copies run beside the training step
    """

    index: Index
    config: DataConfig
    device: torch.device
    stream: torch.cuda.Stream | None
    buffers: Buffers

    @classmethod
    def of(cls, index: Index, config: DataConfig, device: torch.device) -> Target:
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        return cls(index, config, device, stream, Buffers())

    @property
    def normalization(self) -> Normalization:
        return Normalization(self.config.mean, self.config.std)

    def on_stream(self) -> AbstractContextManager[Any]:
        """Within it the device's work is queued on `stream`; on the CPU nothing changes."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def take_thread(self) -> None:
        """A new thread works on GPU 0, and leaving `on_stream` goes back there: on every other rank that would make a
        context on a GPU of another, 500 MB."""
        if self.stream is not None:
            torch.cuda.set_device(self.device)


class Assembly:
    """Takes the pixels of `plan`'s samples, from several threads, in disjoint parts.

    They stay uint8. For a CUDA device they travel out of pinned memory, a quarter of float32's bytes, and are mirrored
    there in the pass that normalises them; on the CPU the loader's threads mirror them, in the core's cache still.
    """

    def __init__(self, target: Target, plan: Plan, *, decoded_on_device: bool = False) -> None:
        self.target, self.plan = target, plan
        self._batch: Batch | None = None
        self._sent: torch.cuda.Event | None = None
        size = target.config.image_size
        shape = (len(plan), size, size, 3)
        self.on_cpu = target.device.type == "cpu"
        if self.on_cpu:
            self.pixels = target.buffers.take(shape, torch.uint8)
            return
        where = {"device": target.device} if decoded_on_device else {"pin_memory": True}
        with target.on_stream():
            self.pixels = torch.empty(shape, dtype=torch.uint8, **where)

    def room(self, part: slice) -> Tensor:
        """uint8 [k, S, S, 3] to be filled for the samples `part` before they are `put`."""
        return self.pixels[part]

    def put(self, part: slice) -> None:
        """The room of the samples `part` is filled, nothing mirrored yet."""
        if self.on_cpu:
            for i in np.flatnonzero(self.plan.geometry.flip[part]).tolist():
                pixels = self.pixels[part.start + i]
                pixels.copy_(pixels.flip(1))

    def send(self) -> None:
        """All pixels are here: start the batch's way to the device."""
        plan, target = self.plan, self.target
        with target.on_stream():
            self._batch = Batch(
                images=self.pixels.to(target.device, non_blocking=True),
                labels=self._moved(target.index.labels[plan.ids].astype(np.int64)),
                ids=plan.ids,
                mask=None if plan.mask is None else self._moved(plan.mask),
                num_replaced=len(plan.replaced),
                replaced=tuple(plan.replaced[place] for place in sorted(plan.replaced)),
                normalization=target.normalization,
                flip=None if self.on_cpu else self._moved(plan.geometry.flip),
            )
        if target.stream is not None:
            self._sent = target.stream.record_event()

    def batch(self) -> Batch:
        """The Batch, for work on the current stream."""
        batch = self._batch
        assert batch is not None, "a batch is sent before it is asked for"
        if self._sent is not None:
            current = torch.cuda.current_stream(self.target.device)
            current.wait_event(self._sent)
            for tensor in (batch.images, batch.labels, batch.mask, batch.flip):
                if tensor is not None:
                    tensor.record_stream(current)
        return batch

    def _moved(self, values: np.ndarray) -> Tensor:
        """On the device, out of pinned memory: a copy out of any other makes the host wait."""
        tensor = torch.from_numpy(values)
        return tensor if self.on_cpu else tensor.pin_memory().to(self.target.device, non_blocking=True)


def handed_over(target: Target, sent: Generator[Assembly, None, None], name: str) -> Generator[Batch, None, None]:
    """The batches of assemblies that a thread makes and sends `config.prefetch` ahead of the training step."""
    assemblies = ahead(sent, target.config.prefetch, name, target.take_thread)
    try:
        for assembly in assemblies:
            yield assembly.batch()
    finally:
        assemblies.close()
