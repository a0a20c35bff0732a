"""One training iteration on a given batch, as the loop runs it, and the state it needs."""

from __future__ import annotations

import dataclasses
import time

import numpy as np
import torch

from dataloading.batch import Batch
from trainer.config import Config
from trainer.learning.collectives import average_batch_norm_statistics
from trainer.learning.forward import HalfForward
from trainer.learning.meta_gradient import meta_step
from trainer.learning.state import Progress, TrainState
from trainer.learning.train_step import train_step
from trainer.run.build import build_state
from trainer.run.distributed import Ranks

NEVER = 1 << 40  # iterations: a meta interval that does not come


def fresh_state(config: Config, num_classes: int, device: torch.device) -> TrainState:
    """A state far from both ends of the schedule; its learning rate is tiny, so that losses stay finite on any data."""
    optim = dataclasses.replace(config.optim, base_lr=1e-6, warmup_epochs=0.0)
    return build_state(
        dataclasses.replace(config, optim=optim), num_classes, Progress(1, NEVER), Ranks(0, 1, 0, 1, device)
    )


def random_batch(config: Config, state: TrainState, num_images: int, num_classes: int) -> Batch:
    """Noise with random labels, on the device in the state's dtype and memory layout."""
    precision, size = state.network.precision, config.data.image_size
    generator = torch.Generator().manual_seed(config.seed)
    images = torch.randn(num_images, 3, size, size, generator=generator)
    labels = torch.randint(num_classes, (num_images,), generator=generator)
    images = images.to(precision.device, precision.image_dtype).contiguous(memory_format=precision.memory_format)
    return Batch(images, labels.to(precision.device), np.arange(num_images))


def run_iteration(state: TrainState, batch: Batch) -> None:
    """Both halves' steps, without what the loop does between iterations."""
    for train_half, meta_half in state.network.seen(batch).crossed_halves():
        forward = HalfForward(state.network, train_half, record=state.meta_due)
        if state.meta_due:
            meta_step(state, forward, meta_half)
        train_step(state, forward)
    average_batch_norm_statistics(state.network.buffers)
    state.advance()


def timed_iteration(state: TrainState, batch: Batch) -> float:
    """Seconds of an iteration, the device's work included."""
    on_gpu = state.network.precision.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize(state.network.precision.device)
    began = time.perf_counter()
    run_iteration(state, batch)
    if on_gpu:
        torch.cuda.synchronize(state.network.precision.device)
    return time.perf_counter() - began
