"""Sums over ranks begin while the backward pass runs, and are those of all gradients."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from trainer.learning.reduction import OverlappedSum


@pytest.fixture(scope="module", autouse=True)
def _group() -> Iterator[None]:
    """One rank, whose sums are what it has: several are in the test of ranks."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@given(size=st.integers(1, 4096), before=st.booleans(), seed=st.integers(0, 99))
def test_every_leaf_gets_its_sum_whatever_the_buckets(size: int, before: bool, seed: int) -> None:
    """Leaves of two dtypes, one that the loss does not read, weights with the channels last."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 1)).to(memory_format=torch.channels_last)
    unread, wide = nn.Parameter(torch.ones(7)), nn.Parameter(torch.ones((), dtype=torch.float64))
    leaves = [wide, *net.parameters(), unread]
    loss = net(torch.randn(2, 3, 6, 6)).square().sum() * wide.float()
    expected = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
    earlier = [torch.randn_like(leaf) for leaf in leaves] if before else None
    if earlier is not None:
        expected = tuple(torch._foreach_add(expected, earlier))
    summed = OverlappedSum(leaves, earlier, size)
    with summed.watching():
        torch.autograd.grad(loss, leaves, allow_unused=True)
    for leaf, got, want in zip(leaves, summed.wait(), expected, strict=True):
        assert got.stride() == leaf.stride()
        torch.testing.assert_close(got, want, rtol=0.0, atol=0.0)


def test_the_last_layers_sum_begins_before_the_first_layers_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[str] = []
    all_reduce = dist.all_reduce

    def noted(tensor: Tensor, **how: Any) -> Any:
        happened.append(f"sum of {tensor.numel()}")
        return all_reduce(tensor, **how)

    monkeypatch.setattr(dist, "all_reduce", noted)
    net = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 2, bias=False))
    leaves = list(net.parameters())
    leaves[0].register_hook(lambda _: happened.append("gradient of the first layer"))
    summed = OverlappedSum(leaves, None, size=6 * 4)
    with summed.watching():
        torch.autograd.grad(net(torch.ones(1, 4)).sum(), leaves)
    summed.wait()
    assert happened == ["sum of 6", "gradient of the first layer", "sum of 12"]
