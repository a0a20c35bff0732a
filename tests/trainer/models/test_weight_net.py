"""The weight net's shapes, inputs and precision."""

from __future__ import annotations

import pytest
import torch

from trainer.models.weight_net import WeightNet, WeightNetConfig

K, N = 5, 7


@pytest.mark.parametrize(("depth", "width"), [(1, 10), (1, 100), (1, 500), (1, 1000), (2, 500), (4, 500)])
@pytest.mark.parametrize("inputs", ["losses", "confidences", "both"])
def test_shapes_of_every_ablation(depth: int, width: int, inputs: str) -> None:
    net = WeightNet(WeightNetConfig(depth, width, inputs), K)  # type: ignore[arg-type]
    first = 2 * K if inputs == "both" else K
    expected = (first + 1) * width + (depth - 1) * (width + 1) * width + (width + 1) * K
    assert sum(p.numel() for p in net.parameters()) == expected
    u = net(50 * torch.randn(N, K), torch.rand(N, K))
    assert u.shape == (N, K)
    assert u.dtype == torch.float32
    assert u.abs().max() <= 1


@pytest.mark.parametrize(
    ("inputs", "reads"), [("losses", (True, False)), ("confidences", (False, True)), ("both", (True, True))]
)
def test_reads_what_it_is_told_to(inputs: str, reads: tuple[bool, bool]) -> None:
    net = WeightNet(WeightNetConfig(inputs=inputs), K)  # type: ignore[arg-type]
    given = (torch.rand(N, K, requires_grad=True), torch.rand(N, K, requires_grad=True))
    grads = torch.autograd.grad(net(*given).sum(), given, allow_unused=True)
    assert tuple(grad is not None for grad in grads) == reads


def test_autocast_does_not_lower_its_precision() -> None:
    net = WeightNet(WeightNetConfig(), K)
    losses, confidences = torch.rand(N, K), torch.rand(N, K)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = net(losses.bfloat16(), confidences)
    assert torch.equal(inside, net(losses.bfloat16().float(), confidences))


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"weight_net.depth is 0"):
        WeightNetConfig(depth=0)
