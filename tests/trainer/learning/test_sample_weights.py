"""Weights are 1 on average over what they are centred over, and never far from it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.learning.sample_weights import Centre, SampleWeightsConfig, centred, weigh
from trainer.models.weight_net import WeightNet, WeightNetConfig

CENTRES = st.sampled_from(["row", "col", "mat"])
SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 8))


def sums(values: torch.Tensor, centre: Centre) -> torch.Tensor:
    """Over what must vanish: samples of each exit, exits of each sample, or everything."""
    return {"row": values.sum(dim=0), "col": values.sum(dim=1), "mat": values.sum()[None]}[centre]


@given(shape=SHAPES, centre=CENTRES, seed=st.integers(0, 2**32))
def test_what_is_centred_sums_to_zero(shape: tuple[int, int], centre: Centre, seed: int) -> None:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    once = centred(values, centre)
    assert sums(once, centre).abs().max() <= 1e-12 * values.numel()
    assert torch.allclose(centred(once, centre), once, atol=1e-12, rtol=0)


@given(shape=SHAPES, centre=CENTRES, seed=st.integers(0, 2**32))
def test_centring_is_self_adjoint(shape: tuple[int, int], centre: Centre, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, y = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    assert torch.allclose((centred(x, centre) * y).sum(), (x * centred(y, centre)).sum(), atol=1e-10)


@given(
    shape=SHAPES,
    centre=CENTRES,
    epsilon=st.floats(0.01, 1.0),
    scale=st.floats(0.0, 1e4),
    inputs=st.sampled_from(["losses", "confidences", "both"]),
    seed=st.integers(0, 2**32),
)
def test_weights_lie_within_two_epsilon_of_one(
    shape: tuple[int, int], centre: Centre, epsilon: float, scale: float, inputs: str, seed: int
) -> None:
    torch.manual_seed(seed)
    losses, confidences = scale * torch.rand(shape), torch.rand(shape)
    net = WeightNet(WeightNetConfig(width=8, inputs=inputs), shape[1])  # type: ignore[arg-type]
    weights = weigh(net, losses, confidences, SampleWeightsConfig(epsilon=epsilon, centre=centre))
    assert (weights.values - 1).abs().max() <= 2 * epsilon + 1e-6
    assert sums(weights.values - 1, centre).abs().max() <= 1e-5 * weights.values.numel()
    assert not weights.values.requires_grad
    assert weights.raw.requires_grad


@pytest.mark.parametrize("centre", ["row", "col", "mat"])
def test_the_way_back_is_autograds(centre: Centre) -> None:
    torch.manual_seed(0)
    losses, cotangent = torch.rand(7, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    net = WeightNet(WeightNetConfig(width=8), 3).double()
    config = SampleWeightsConfig(epsilon=0.3, centre=centre)
    dim = {"row": 0, "col": 1, "mat": (0, 1)}[centre]
    raw = net(losses, losses)
    written_out = 1 + 0.3 * (raw - raw.mean(dim=dim, keepdim=True))  # METHOD: weights
    expected = torch.autograd.grad((written_out * cotangent).sum(), list(net.parameters()))
    weights = weigh(net, losses, losses, config)
    assert torch.allclose(weights.values, written_out)
    weights.backward(cotangent)
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, gradient, atol=1e-12)


@pytest.mark.parametrize("epsilon", [0.0, -0.3, 1.1, float("nan")])
def test_epsilon_is_checked(epsilon: float) -> None:
    with pytest.raises(ValueError, match=r"sample_weights.epsilon is .*; it must lie in \(0, 1\]"):
        SampleWeightsConfig(epsilon=epsilon)
