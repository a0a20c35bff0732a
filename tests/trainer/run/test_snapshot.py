"""A state taken apart and put together again is the same state."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from trainer.config import Config
from trainer.learning.optim import OptimConfig
from trainer.learning.precision import PrecisionConfig
from trainer.learning.sample_weights import SampleWeightsConfig
from trainer.learning.state import Progress, TrainState
from trainer.models.config import ModelConfig
from trainer.models.weight_net import WeightNetConfig
from trainer.run import snapshot
from trainer.run.build import build_state
from trainer.run.distributed import Ranks

ALONE = Ranks(0, 1, 0, 1, torch.device("cpu"))
MODEL = ModelConfig(
    num_exits=2, first_channels=4, growth=4, growth_factors=(1, 1), bottleneck_factors=(1, 1), classifier_channels=8
)


def state_of(model: ModelConfig = MODEL, enabled: bool = True, seed: int = 0, **precision: Any) -> TrainState:
    config = Config(
        recipe="test",
        model=model,
        optim=OptimConfig(8),
        sample_weights=SampleWeightsConfig(enabled=enabled),
        weight_net=WeightNetConfig(width=8),
        precision=PrecisionConfig(**precision),
        seed=seed,
    )
    return build_state(config, 5, Progress(0, 100), ALONE)


def moved(state: TrainState, times: int = 2) -> TrainState:
    """Random gradients, a few steps of both optimizers."""
    for _ in range(times):
        for module, optimizer in (
            (state.network.module, state.optimizer),
            (state.weight_net, state.weight_net_optimizer),
        ):
            if module is not None and optimizer is not None:
                for parameter in module.parameters():
                    parameter.grad = torch.randn_like(parameter)
                optimizer.step()
        state.advance()
    return state


@pytest.mark.parametrize("layout", ["off", "on"])
@pytest.mark.parametrize("enabled", [True, False])
def test_round_trip(enabled: bool, layout: str) -> None:
    """Into a state of another seed that has already moved: every bit, and the next step too."""
    first = moved(state_of(enabled=enabled, channels_last=layout))
    tensors, values = snapshot.take(first)
    held = {name: value.clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    second = moved(state_of(enabled=enabled, channels_last=layout, seed=1), times=1)
    snapshot.restore(second, held, values)
    assert second.progress.iteration == 2
    assert second.lr == first.lr
    for state in (first, second):
        torch.set_rng_state(held["generator.cpu"])
        moved(state, times=1)
    ours, theirs = snapshot.take(first)[0], snapshot.take(second)[0]
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
        if ours[name].ndim == 4 and ours[name].shape[2] > 1:  # 1x1 kernels have both layouts at once
            assert ours[name].stride() == theirs[name].stride(), name


def test_a_fresh_state_has_no_momentum_to_restore() -> None:
    tensors, values = snapshot.take(state_of())
    state = moved(state_of())
    snapshot.restore(state, tensors, values)
    assert not state.optimizer.state
    assert state.progress.iteration == 0


@pytest.mark.parametrize(
    "lacking", ["optimizer.momentum_buffer", "weight_net_optimizer.exp_avg", "weight_net_optimizer"]
)
def test_an_optimizer_that_knows_some_parameters_only_is_refused(lacking: str) -> None:
    """A fused step would find no memory for the one, where others start it anew without a word."""
    tensors, values = snapshot.take(moved(state_of()))
    prefix = lacking.partition(".")[0]
    held = [name for name in tensors if name.startswith(f"{prefix}.")]
    parameter = max(held, key=len).split(".", 2)[2]
    for name in held:
        if name.startswith(f"{lacking}.") and name.endswith(f".{parameter}"):
            del tensors[name]
    with pytest.raises(ValueError, match=rf"the checkpoint lacks {prefix}\.\w+\.{parameter}: it is no state"):
        snapshot.restore(state_of(), tensors, values)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"model": dataclasses.replace(MODEL, growth=6)}, r"has shape .*, the net's .*another net"),
        ({"model": dataclasses.replace(MODEL, num_exits=3)}, "another net"),
        ({"model": dataclasses.replace(MODEL, num_exits=1)}, "has no place in the net.*another net"),
        ({"enabled": False}, "has a weight net and sample_weights.enabled is false"),
    ],
)
def test_another_net_is_refused(other: dict[str, Any], said: str) -> None:
    tensors, values = snapshot.take(moved(state_of()))
    with pytest.raises(ValueError, match=said):
        snapshot.restore(state_of(**other), tensors, values)


def test_a_weighted_run_needs_a_weight_net() -> None:
    tensors, values = snapshot.take(moved(state_of(enabled=False)))
    with pytest.raises(ValueError, match="has no tensor weight_net"):
        snapshot.restore(state_of(), tensors, values)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("where", ["weight", "statistic", "weight net"])
def test_what_is_not_finite_shows(where: str, bad: float) -> None:
    state = moved(state_of())
    assert snapshot.is_finite(state)
    assert state.weight_net is not None
    tensors = {
        "weight": list(state.network.parameters.values())[-1],
        "statistic": next(value for name, value in state.network.module.named_buffers() if "var" in name),
        "weight net": state.weight_net.output.bias,
    }
    with torch.no_grad():
        tensors[where].view(-1)[-1] = bad
    assert not snapshot.is_finite(state)
