"""One batch being put together: from uint8 pixels in any order to a Batch on the device."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataloading.batch import Batch
from dataloading.buffers import Buffers, Scratch
from dataloading.config import DataConfig
from dataloading.index import Index
from dataloading.stream import Plan
from kernels.normalize import normalize


@dataclass(frozen=True)
class Target:
    """Where batches go, and as what.

    stream  on a CUDA device: the loader's own stream, so that copies run beside the training step
    """

    index: Index
    config: DataConfig
    device: torch.device
    dtype: torch.dtype
    stream: torch.cuda.Stream | None
    buffers: Buffers
    scratch: Scratch

    @classmethod
    def of(cls, index: Index, config: DataConfig, device: torch.device, dtype: torch.dtype) -> Target:
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        return cls(index, config, device, dtype, stream, Buffers(), Scratch(config.image_size))

    def on_stream(self) -> AbstractContextManager[Any]:
        """Within it the device's work is queued on `stream`; on the CPU nothing changes."""
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)


class Assembly:
    """Takes the pixels of `plan`'s samples, from several threads, in disjoint parts.

    On the CPU each part is normalised as it comes, while it lies in the core's cache. For a CUDA device the pixels
    travel as uint8, a quarter of float32, out of pinned memory, and one kernel there normalises and mirrors them.
    """

    def __init__(self, target: Target, plan: Plan, *, decoded_on_device: bool = False) -> None:
        self.target, self.plan = target, plan
        self._sent: torch.cuda.Event | None = None
        n, size = len(plan), target.config.image_size
        self.on_cpu = target.device.type == "cpu"
        if self.on_cpu:
            self.images = target.buffers.take((n, size, size, 3), target.dtype).permute(0, 3, 1, 2)
            return
        where = {"device": target.device} if decoded_on_device else {"pin_memory": True}
        with target.on_stream():
            self.pixels = torch.empty(n, size, size, 3, dtype=torch.uint8, **where)

    def room(self, part: slice) -> Tensor:
        """uint8 [k, S, S, 3] to be filled for the samples `part` and given to `put` by the same thread."""
        return self.target.scratch.take(part.stop - part.start) if self.on_cpu else self.pixels[part]

    def put(self, part: slice, pixels: Tensor) -> None:
        """The pixels of the samples `part`, in `room(part)`, not yet mirrored."""
        if not self.on_cpu:
            return
        for i in np.flatnonzero(self.plan.geometry.flip[part]).tolist():
            pixels[i] = pixels[i].flip(1)
        config = self.target.config
        normalize(pixels, config.mean, config.std, self.target.dtype, out=self.images[part], backend="reference")

    def send(self) -> None:
        """All pixels are here: start their way to the device."""
        if self.target.stream is not None:
            with self.target.on_stream():
                self.pixels = self.pixels.to(self.target.device, non_blocking=True)
            self._sent = self.target.stream.record_event()

    def batch(self) -> Batch:
        """The Batch, for work on the current stream."""
        plan, target = self.plan, self.target
        if self._sent is not None:
            current = torch.cuda.current_stream(target.device)
            current.wait_event(self._sent)
            self.pixels.record_stream(current)
            flip = torch.from_numpy(plan.geometry.flip).to(target.device, non_blocking=True)
            config = target.config
            self.images = normalize(self.pixels, config.mean, config.std, target.dtype, flip=flip)
        labels = torch.from_numpy(target.index.labels[plan.ids].astype(np.int64))
        mask = None if plan.mask is None else torch.from_numpy(plan.mask).to(target.device, non_blocking=True)
        return Batch(
            images=self.images,
            labels=labels.to(target.device, non_blocking=True),
            ids=plan.ids,
            mask=mask,
            num_replaced=len(plan.replaced),
            replaced=tuple(plan.replaced[place] for place in sorted(plan.replaced)),
        )
