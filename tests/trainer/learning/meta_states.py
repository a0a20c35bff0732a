"""States, batches and meta gradients that several tests of this folder take."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from dataloading.batch import Batch
from trainer.config import Config
from trainer.learning.forward import HalfForward
from trainer.learning.meta_gradient import Form, MetaConfig, Schedule, meta_gradient
from trainer.learning.optim import OptimConfig
from trainer.learning.precision import PrecisionConfig
from trainer.learning.sample_weights import Centre, SampleWeightsConfig, weigh
from trainer.learning.state import Progress, TrainState
from trainer.learning.train_step import train_step
from trainer.models.config import ModelConfig
from trainer.models.weight_net import WeightNetConfig
from trainer.run.build import build_state
from trainer.run.distributed import Ranks

ALONE = Ranks(0, 1, 0, 1, torch.device("cpu"))


def state_of(
    model: ModelConfig,
    *,
    form: Form = "exact",
    schedule: Schedule = "paper",
    centre: Centre = "mat",
    dtype: str = "float64",
    update_batch: int = 8,
    accumulation: int = 1,
    nesterov: bool = False,
    ratio: float = 0.75,
    difference: float = 1e-3,
    compiled: bool = False,
    channels_last: bool = False,
) -> TrainState:
    config = Config(
        recipe="test",
        model=model,
        optim=OptimConfig(update_batch, base_batch=update_batch, nesterov=nesterov, accumulation=accumulation),
        sample_weights=SampleWeightsConfig(epsilon=0.8, centre=centre),
        weight_net=WeightNetConfig(depth=2, width=10),
        meta=MetaConfig(form=form, schedule=schedule, ratio=ratio, difference=difference),
        precision=PrecisionConfig(dtype=dtype, channels_last="on" if channels_last else "off", compile=compiled),
    )
    return build_state(config, 10, Progress(0, 100), ALONE)


def batch_of(num_images: int, size: int = 32, dtype: torch.dtype = torch.float64) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(num_images, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, 10, (num_images,), generator=generator)
    return Batch(images, labels, np.arange(num_images))


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def gradient_after(state: TrainState, batch: Batch, steps: int = 1) -> Tensor:
    """d meta_loss / d w of the first half, after some real steps (so that momentum is there)."""
    for _ in range(steps):
        for a, _b in batch.crossed_halves():
            train_step(state, HalfForward(state.network, a))
    a, b = next(batch.crossed_halves())
    forward = HalfForward(state.network, a, record=True)
    values = forward.values
    assert state.weight_net is not None
    weights = weigh(state.weight_net, values.losses, values.confidences, state.config.sample_weights)
    return meta_gradient(state, forward, weights, b)[0]
