"""The learning rate at every iteration, and SGD as METHOD writes it."""

from __future__ import annotations

import dataclasses
import importlib.machinery
import itertools
import math
import sys
import types

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from trainer.learning.optim import OptimConfig, build_sgd, cosine, momentum_buffers, set_learning_rate
from trainer.recipes.catalogue import recipe


def test_cosine_values() -> None:
    """METHOD: lr0/2 (1 + cos(pi t / T)) at iteration t of T; zero is reached only behind the last one."""
    assert [cosine(t, 4) for t in range(5)] == pytest.approx([1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0.0])
    assert all(cosine(t, 1000) == 0.5 * (1 + math.cos(math.pi * t / 1000)) for t in range(1000))


@given(total=st.integers(2, 10_000), data=st.data())
def test_warmup_rises_to_the_peak_and_the_cosine_falls_from_it(total: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, total - 1))
    rates = [cosine(t, total, warmup) for t in range(total)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[:warmup] == pytest.approx([(t + 1) / warmup for t in range(warmup)])
    assert rates[warmup] == 1.0
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)
    assert cosine(total, total, warmup) == pytest.approx(0.0, abs=1e-12)


def test_peak_learning_rates_are_the_published_ones() -> None:
    assert recipe("imagenet-msdnet-step4").optim.peak_lr == pytest.approx(0.8)
    assert recipe("cifar100-msdnet-5exits").optim.peak_lr == pytest.approx(0.8)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("rate_on_device", [False, True])
def test_two_steps_written_out(nesterov: bool, rate_on_device: bool) -> None:
    """METHOD: d = g + wd theta; m = mu m + d (m = d at first); s = d + mu m with Nesterov, else m; theta -= lr s.

    On the device the rate is a float32 scalar, which stays the same tensor."""
    config = OptimConfig(update_batch=64, base_lr=0.2, momentum=0.9, weight_decay=0.01, nesterov=nesterov)
    parameter = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    optimizer = build_sgd([parameter], config, rate_on_device)
    rate, accuracy = optimizer.param_groups[0]["lr"], 1e-7 if rate_on_device else 1e-15
    assert momentum_buffers(optimizer, [parameter]) == [None]
    theta, m = parameter.detach().clone(), None
    for lr, gradient in ((0.2, [0.5, 1.0]), (0.1, [-1.0, 3.0])):
        set_learning_rate(optimizer, lr)
        assert (optimizer.param_groups[0]["lr"] is rate) is rate_on_device
        g = parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
        d = g + 0.01 * theta
        m = d.clone() if m is None else 0.9 * m + d
        theta = theta - lr * (d + 0.9 * m if nesterov else m)
        assert torch.allclose(parameter, theta, atol=accuracy)
        (buffer,) = momentum_buffers(optimizer, [parameter])
        assert buffer is not None
        assert torch.allclose(buffer, m, atol=accuracy)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("update_batch", 0),
        ("base_batch", 0),
        ("base_lr", 0.0),
        ("momentum", 1.0),
        ("weight_decay", -1e-4),
        ("label_smoothing", 1.0),
        ("warmup_epochs", -1.0),
        ("accumulation", 3),
    ],
)
def test_values_out_of_range(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"optim\.{name} is {value}; it must"):
        dataclasses.replace(OptimConfig(update_batch=8), **{name: value})  # type: ignore[arg-type]


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(ValueError, match=r"optim\.nesterov needs optim\.momentum above 0"):
        OptimConfig(nesterov=True, momentum=0.0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_memory_layouts_and_backends_make_no_difference(momentum: float) -> None:
    """A fused step pairs values by their place in memory: gradients that lie otherwise train the same net."""
    torch.manual_seed(0)
    start = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    found = []
    for backend in ("torch", "plain"):
        for ours, theirs in itertools.product((torch.contiguous_format, torch.channels_last), repeat=2):
            parameter = nn.Parameter(start.clone(memory_format=ours))
            config = OptimConfig(backend=backend, momentum=momentum)  # type: ignore[arg-type]
            optimizer = build_sgd([parameter], config)
            generator = torch.Generator().manual_seed(1)
            for _ in range(3):
                gradient = torch.randn(start.shape, generator=generator, dtype=start.dtype)
                parameter.grad = gradient.clone(memory_format=theirs)
                optimizer.step()
            found.append(parameter.detach())
    for one in found[1:]:
        torch.testing.assert_close(one, found[0], rtol=1e-12, atol=1e-12)


def test_apex_is_never_replaced_silently() -> None:
    with pytest.raises(ValueError, match=r"optim\.backend is apex.*amp_C.*optim\.backend=torch"):
        build_sgd([nn.Parameter(torch.zeros(1))], OptimConfig(backend="apex"))


def test_apex_gets_gradients_laid_out_as_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its kernels pair values by their place in memory. (A stand-in that insists: the real one needs a GPU.)"""

    class FusedSGD(torch.optim.SGD):
        def step(self, closure: object = None) -> None:  # type: ignore[override]
            for group in self.param_groups:
                assert all(p.grad.stride() == p.stride() for p in group["params"])
            super().step()

    optimizers = types.ModuleType("apex.optimizers")
    optimizers.FusedSGD = FusedSGD  # type: ignore[attr-defined]
    for name, module in {"amp_C": types.ModuleType("amp_C"), "apex": types.ModuleType("apex")}.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(sys.modules, "apex.optimizers", optimizers)
    weight = nn.Parameter(torch.randn(4, 3, 3, 3).contiguous(memory_format=torch.channels_last))
    theirs = build_sgd([weight], OptimConfig(64, backend="apex"))
    weight.grad = torch.randn(4, 3, 3, 3)
    moved = weight.detach() - theirs.param_groups[0]["lr"] * (weight.grad + 1e-4 * weight.detach())
    theirs.step()
    torch.testing.assert_close(weight.detach(), moved)
