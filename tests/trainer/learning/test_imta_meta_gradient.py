"""Sample weights over rescaled gradients and over distilled losses: the meta gradient is the meta loss's derivative."""

from __future__ import annotations

import dataclasses
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from dataloading.batch import Batch
from tests.trainer.learning.without_code import without_code
from trainer.config import Config
from trainer.learning.distillation import DistillationConfig
from trainer.learning.forward import HalfForward
from trainer.learning.meta_gradient import (
    Form,
    MetaConfig,
    Schedule,
    Update,
    judged,
    meta_cotangent,
    meta_gradient,
    meta_step,
)
from trainer.learning.optim import OptimConfig
from trainer.learning.precision import PrecisionConfig
from trainer.learning.sample_weights import SampleWeightsConfig, weigh
from trainer.learning.state import Progress, TrainState
from trainer.learning.train_step import train_step
from trainer.models.config import ModelConfig
from trainer.models.weight_net import WeightNetConfig
from trainer.run.build import build_state
from trainer.run.distributed import Ranks

Phase = Literal["pretrain", "finetune"]
PHASES: tuple[Phase, ...] = ("pretrain", "finetune")


def state_of(
    phase: Phase,
    *,
    form: Form = "exact",
    schedule: Schedule = "paper",
    accumulation: int = 1,
    compiled: bool = False,
    gamma: float = 0.5,
) -> TrainState:
    config = Config(
        recipe="test",
        model=ModelConfig(num_exits=3, first_channels=4, growth=2, classifier_channels=8, imta=phase),
        optim=OptimConfig(8, base_batch=8, accumulation=accumulation),
        sample_weights=SampleWeightsConfig(epsilon=0.8, centre="col"),
        weight_net=WeightNetConfig(width=10),
        meta=MetaConfig(form=form, schedule=schedule),
        distillation=DistillationConfig(gamma, 2.0) if phase == "finetune" else DistillationConfig(),
        precision=PrecisionConfig(dtype="float64", compile=compiled),
    )
    return build_state(config, 10, Progress(0, 100), Ranks(0, 1, 0, 1, torch.device("cpu")))


def batch_of(state: TrainState, num_images: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(num_images, 3, 32, 32, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, 10, (num_images,), generator=generator)
    return state.network.seen(Batch(images, labels, np.arange(num_images)))


def prepared(state: TrainState) -> tuple[Batch, Batch]:
    """Both halves, after a step of each: momentum is there."""
    batch = batch_of(state)
    for a, _b in batch.crossed_halves():
        train_step(state, HalfForward(state.network, a))
    return next(batch.crossed_halves())


def gradient(state: TrainState, *, record: bool = True) -> Tensor:
    a, b = prepared(state)
    forward = HalfForward(state.network, a, record=record)
    assert state.weight_net is not None
    weights = weigh(state.weight_net, forward.values.losses, forward.values.confidences, state.config.sample_weights)
    return meta_gradient(state, forward, weights, b)[0]


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("phase", PHASES)
def test_exact_is_the_derivative_of_the_meta_loss(phase: Phase) -> None:
    """Numerically: the weights moved either way, the real step taken from them, the meta loss (cross-entropies, at
    gradients nobody rescales) measured after it."""
    state = state_of(phase)
    a, b = prepared(state)
    forward = HalfForward(state.network, a, record=True)
    assert state.network.tangents == "replayed"
    assert state.weight_net is not None
    weights = weigh(state.weight_net, forward.values.losses, forward.values.confidences, state.config.sample_weights)
    slope, loss = meta_gradient(state, forward, weights, b)
    direction = torch.randn(slope.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    before = {name: p.detach().clone() for name, p in state.network.parameters.items()}
    momentum = {p: slots["momentum_buffer"].clone() for p, slots in state.optimizer.state.items()}

    def meta_loss(step: float) -> float:
        HalfForward(state.network, a).backward((weights.values + step * direction) / len(a), lambda x: x)
        state.step_backbone()
        judge = HalfForward(state.network, b, dict(state.network.parameters), judging=True)
        cotangent, _ = meta_cotangent(judge.values.losses, judge.values.confidences, state.config.meta.ratio)
        value = float((cotangent * judge.values.losses).sum())
        with torch.no_grad():
            for name, p in state.network.parameters.items():
                p.copy_(before[name])
                state.optimizer.state[p]["momentum_buffer"].copy_(momentum[p])
        return value

    assert meta_loss(0.0) == pytest.approx(float(loss), rel=1e-12)
    step = 1e-5
    numerical = (meta_loss(step) - meta_loss(-step)) / (2 * step)
    assert float((slope * direction).sum()) == pytest.approx(numerical, rel=1e-5)


@pytest.mark.parametrize("phase", PHASES)
def test_every_way_gives_the_same(phase: Phase) -> None:
    expected = gradient(state_of(phase, form="double_backward"))
    assert relative(gradient(state_of(phase)), expected) < 1e-9
    assert relative(gradient(state_of(phase), record=False), expected) < 1e-9  # dual tensors
    online = state_of(phase, schedule="online")
    a, b = prepared(online)
    forward = HalfForward(online.network, a, record=True)
    assert online.weight_net is not None
    weights = weigh(online.weight_net, forward.values.losses, forward.values.confidences, online.config.sample_weights)
    update = Update(weights, forward.linearised(keep=True))
    train_step(online, forward)
    judge = HalfForward(online.network, b, dict(online.network.parameters), judging=True)
    assert relative(judged(online, update, judge)[0], expected) < 1e-9


@pytest.mark.parametrize(("phase", "schedule"), [("pretrain", "online"), ("finetune", "paper")])
def test_compiled_and_eager_iterations_agree(phase: Phase, schedule: Schedule) -> None:
    ends = []
    torch._dynamo.reset()
    with torch._functorch.config.patch(donated_buffer=True), without_code():
        for compiled in (False, True):
            state = state_of(phase, schedule=schedule, compiled=compiled)
            batch = batch_of(state)
            for _ in range(2):
                for a, b in batch.crossed_halves():
                    forward = HalfForward(state.network, a, record=True)
                    meta_step(state, forward, b)
                    train_step(state, forward)
                state.advance()
            assert state.weight_net is not None
            tensors = [*state.network.module.state_dict().values(), *state.weight_net.state_dict().values()]
            ends.append(torch.cat([t.detach().double().flatten() for t in tensors]))
    torch._dynamo.reset()
    assert relative(ends[1], ends[0]) < 1e-9


def test_micro_batches_of_running_statistics_add_up() -> None:
    """Frozen features, new exits on running statistics: four micro-batches give the gradient of one."""
    found = []
    for accumulation in (1, 4):
        state = state_of("finetune", accumulation=accumulation)
        for norm in [m for m in state.network.trained.modules() if isinstance(m, torch.nn.BatchNorm1d)]:
            norm.eval()
        found.append(gradient(state))
    assert relative(found[1], found[0]) < 1e-9


def test_distillation_trains_and_does_not_judge() -> None:
    state = state_of("finetune", gamma=1.0)
    a, _b = batch_of(state).crossed_halves().__next__()
    trains, judges = (HalfForward(state.network, a, judging=judging).values.losses for judging in (False, True))
    assert torch.equal(trains[:, -1], judges[:, -1])
    assert not torch.allclose(trains[:, 0], judges[:, 0])


def test_finite_differences_see_no_rescaled_gradient() -> None:
    with pytest.raises(ValueError, match=r"model\.imta pretrain"):
        state_of("pretrain", form="finite_difference")
    config = state_of("finetune", form="finite_difference").config
    with pytest.raises(ValueError, match=r"optim\.recompute"):
        dataclasses.replace(config, optim=dataclasses.replace(config.optim, recompute=True))
