"""One training iteration on a given batch, as the loop runs it, and the state it needs."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from dataloading.batch import Batch
from trainer.config import Config
from trainer.learning.graphs import Iteration, iteration_of, settling
from trainer.learning.iteration import run_iteration
from trainer.learning.state import Progress, TrainState
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


def iterate(state: TrainState, batch: Batch, iteration: Iteration = run_iteration) -> None:
    """Both halves' steps, without what the loop does between iterations."""
    iteration(state, batch)
    state.advance()


def ready(state: TrainState, batch: Batch) -> Iteration:
    """How this state's iterations run, after enough of them that the next one is like any other."""
    iteration = iteration_of(state)
    for _ in range(settling(state)):
        iterate(state, batch, iteration)
    return iteration
