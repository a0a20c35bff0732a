"""A half in micro-batches is the half; batch-norm's running statistics move once an update, whatever looks ahead."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dataloading.batch import Batch
from trainer.config import Config
from trainer.learning.forward import HalfForward
from trainer.learning.meta_gradient import MetaConfig, meta_step
from trainer.learning.optim import OptimConfig
from trainer.learning.precision import PrecisionConfig
from trainer.learning.state import Progress, TrainState
from trainer.learning.train_step import train_step
from trainer.models.config import ModelConfig
from trainer.models.weight_net import WeightNetConfig
from trainer.run.build import build_state
from trainer.run.distributed import Ranks

ALONE = Ranks(0, 1, 0, 1, torch.device("cpu"))
N = 8


def state_of(
    batch_norm: str = "batch",
    accumulation: int = 1,
    form: str = "exact",
    smoothing: float = 0.0,
    schedule: str = "paper",
) -> TrainState:
    model = ModelConfig(
        num_exits=2,
        first_channels=4,
        growth=4,
        growth_factors=(1, 1),
        bottleneck_factors=(1, 1),
        classifier_channels=8,
        batch_norm=batch_norm,  # type: ignore[arg-type]
    )
    config = Config(
        recipe="test",
        model=model,
        optim=OptimConfig(N, base_batch=N, accumulation=accumulation, label_smoothing=smoothing),
        weight_net=WeightNetConfig(width=8),
        meta=MetaConfig(form=form, schedule=schedule),  # type: ignore[arg-type]
        precision=PrecisionConfig(dtype="float64"),
    )
    return build_state(config, 5, Progress(0, 100), ALONE)


def half_of(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(N, 3, 16, 16, generator=generator, dtype=torch.float64)
    return Batch(images, torch.randint(0, 5, (N,), generator=generator), np.arange(N))


def statistics(state: TrainState) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.network.module.named_buffers()}


@settings(max_examples=10, deadline=None)
@given(accumulation=st.sampled_from([2, 4, 8]), seed=st.integers(0, 1000), smoothing=st.sampled_from([0.0, 0.1]))
def test_micro_batches_are_the_half(accumulation: int, seed: int, smoothing: float) -> None:
    """With running statistics no image sees its neighbours: losses, gradient and .grad are the unsplit ones."""
    cotangent = torch.randn(N, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    direction_seed = torch.Generator().manual_seed(seed)
    found = []
    for parts in (1, accumulation):
        state = state_of("running", parts, smoothing=smoothing)
        forward = HalfForward(state.network, half_of(seed))
        direction_seed.manual_seed(seed)
        direction = [
            torch.randn(p.shape, generator=direction_seed, dtype=p.dtype) for p in state.network.parameters.values()
        ]
        values, gradient = forward.values, forward.gradient(cotangent)
        slope = forward.linearised().along(direction)
        forward.backward(cotangent, state.scaler.scale)
        added = [p.grad for p in state.network.parameters.values()]
        assert all(grad is not None for grad in added)
        found.append([values.losses, values.confidences, values.top1.double(), slope, *gradient, *added])
    for one, several in zip(*found, strict=True):
        assert torch.allclose(one, several, rtol=1e-9, atol=1e-11)


def test_the_three_derivatives_agree() -> None:
    """<direction, gradient(c)> = <c, directional derivative>, and .grad receives what `gradient` returns."""
    state, half = state_of(), half_of()
    cotangent = torch.rand(N, 2, dtype=torch.float64)
    direction = [torch.randn_like(p) for p in state.network.parameters.values()]
    recorded, plain = HalfForward(state.network, half, record=True), HalfForward(state.network, half)
    gradient = recorded.gradient(cotangent)
    inner = sum(float((g * d).sum()) for g, d in zip(gradient, direction, strict=True))
    for forward in (recorded, plain):  # tangent replay, dual tensors
        slope = forward.linearised().along(direction)
        assert float((slope * cotangent).sum()) == pytest.approx(inner, rel=1e-9)
    recorded.backward(cotangent, state.scaler.scale)
    for parameter, expected in zip(state.network.parameters.values(), gradient, strict=True):
        assert torch.allclose(parameter.grad, expected, rtol=1e-10, atol=1e-14)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("accumulation", "form"),
    [(1, "exact"), (2, "exact"), (1, "double_backward"), (1, "finite_difference"), (2, "finite_difference")],
)
def test_running_statistics_move_once_an_update(accumulation: int, form: str) -> None:
    """An update with a meta step leaves them where one without leaves them: at one pass over the half (its parts)."""
    half, other = half_of(1), half_of(2)
    expected = state_of(accumulation=accumulation)
    for part in half.micro_batches(accumulation):
        expected.network.module(part.images)
    after_meta, after_plain = state_of("batch", accumulation, form), state_of("batch", accumulation, form)
    forward = HalfForward(after_meta.network, half, record=True)
    meta_step(after_meta, forward, other)
    train_step(after_meta, forward)
    train_step(after_plain, HalfForward(after_plain.network, half))
    moved = statistics(expected)
    assert {int(v) for k, v in moved.items() if k.endswith("num_batches_tracked")} == {accumulation}
    for state in (after_meta, after_plain):
        for name, value in statistics(state).items():
            assert torch.allclose(value, moved[name], rtol=1e-12, atol=1e-14), name


@pytest.mark.parametrize("schedule", ["paper", "online"])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_an_iteration_counts_its_two_updates(accumulation: int, schedule: str) -> None:
    state = state_of(accumulation=accumulation, schedule=schedule)
    for train_half, meta_half in ((half_of(1), half_of(2)), (half_of(2), half_of(1))):
        forward = HalfForward(state.network, train_half, record=True)
        meta_step(state, forward, meta_half)
        train_step(state, forward)
    counts = {int(v) for name, v in statistics(state).items() if name.endswith("num_batches_tracked")}
    assert counts == {2 * accumulation}


def test_running_statistics_stay_in_running_mode() -> None:
    state, half = state_of("running"), half_of()
    before = statistics(state)
    forward = HalfForward(state.network, half, record=True)
    meta_step(state, forward, half_of(2))
    train_step(state, forward)
    assert all(torch.equal(value, before[name]) for name, value in statistics(state).items())


def test_looking_elsewhere_leaves_everything_alone() -> None:
    """A pass at other parameters moves neither statistics nor .grad, and sees those parameters."""
    state, half = state_of(), half_of()
    before = statistics(state)
    ahead = {name: p.detach() + 0.1 for name, p in state.network.parameters.items()}
    ahead = {name: p.requires_grad_() for name, p in ahead.items()}
    there = HalfForward(state.network, half, ahead)
    there.gradient(torch.ones(N, 2, dtype=torch.float64))
    assert all(torch.equal(value, before[name]) for name, value in statistics(state).items())
    assert all(p.grad is None for p in state.network.parameters.values())
    assert not torch.allclose(there.values.losses, HalfForward(state.network, half).values.losses)


def test_the_loss_scaler_is_passed_through() -> None:
    """fp16 needs a GPU; what runs here is the same code with the scaler off: scale 1, the plain step taken."""
    state, half = state_of(), half_of()
    assert not state.scaled
    assert state.loss_scale() == 1.0
    assert state.scaler.state_dict() == {}
    forward = HalfForward(state.network, half)
    train_step(state, forward)
    twin = state_of()
    values = HalfForward(twin.network, half).values
    assert torch.allclose(forward.values.losses, values.losses)
    reference = state_of()
    assert reference.weight_net is not None
    from trainer.learning.sample_weights import weigh

    weights = weigh(reference.weight_net, values.losses, values.confidences, reference.config.sample_weights).values
    losses = reference.network.losses(reference.network.logits(half.images), half).losses
    (weights * losses).mean(dim=0).sum().backward()  # METHOD: sum over exits of the mean over samples
    reference.optimizer.step()
    for name, parameter in state.network.parameters.items():
        assert torch.allclose(parameter, reference.network.parameters[name], rtol=1e-10, atol=1e-14), name


def test_a_parameter_of_two_layers_is_refused() -> None:
    state = state_of()
    norms = [module for module in state.network.trained.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    other = next(norm for norm in norms[1:] if norm.weight.shape == norms[0].weight.shape)
    other.weight = norms[0].weight
    with pytest.raises(ValueError, match="are one parameter; give every layer its own"):
        _ = dataclasses.replace(state.network).parameters
