"""Gradient equilibrium, checked by gradients: block by block on detached features, with the factors written out."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from trainer.models.build import build_model
from trainer.models.config import ModelConfig
from trainer.models.equilibrium import true_gradients

PLAIN = ModelConfig(num_exits=4, first_channels=4, growth=2, classifier_channels=8)
PRETRAIN = dataclasses.replace(PLAIN, imta="pretrain")


def built(config: ModelConfig) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(config, 5).double()


def images() -> Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def gradients(net: torch.nn.Module, output: Tensor) -> dict[str, Tensor]:
    named = dict(net.named_parameters())
    found = torch.autograd.grad(output, list(named.values()), allow_unused=True, materialize_grads=True)
    return dict(zip(named, found, strict=True))


def test_each_block_gets_the_rescaled_sum() -> None:
    """At the end of block k: 1 / (K - k + 1) of [its own exit's gradient + (K - k) of the next block's]."""
    net, K = built(PLAIN), PLAIN.num_exits
    weights = [torch.randn(3, 5, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in range(K)]
    # The walk, cut into pieces that share no graph.
    pieces, features = [], [x.detach().requires_grad_() for x in net.stem(images())]
    for block in net.blocks:
        out = block(features)
        pieces.append((features, out))
        features = [x.detach().requires_grad_() for x in out]
    expected: dict[str, Tensor] = {}
    onward: list[Tensor] | None = None
    for k in range(K, 0, -1):
        inputs, out = pieces[k - 1]
        coarsest = out[-1].detach().requires_grad_()
        loss = (net.classifiers[k - 1](coarsest) * weights[k - 1]).sum()
        named = {f"classifiers.{k - 1}.{name}": p for name, p in net.classifiers[k - 1].named_parameters()}
        own, *found = torch.autograd.grad(loss, [coarsest, *named.values()])
        expected |= dict(zip(named, found, strict=True))
        # Finer scales carry no factor; a dropped one has no gradient.
        back = [torch.zeros_like(x) for x in out] if onward is None else list(onward)
        back[-1] = (own + (K - k) * back[-1]) / (K - k + 1)
        named = {f"blocks.{k - 1}.{name}": p for name, p in net.blocks[k - 1].named_parameters()}
        found = torch.autograd.grad(out, [*inputs, *named.values()], back, allow_unused=True, materialize_grads=True)
        onward = list(found[: len(inputs)])
        expected |= dict(zip(named, found[len(inputs) :], strict=True))
    named = {f"stem.{name}": p for name, p in net.stem.named_parameters()}
    expected |= dict(zip(named, torch.autograd.grad(net.stem(images()), list(named.values()), onward), strict=True))

    balanced = built(PRETRAIN)
    total = torch.stack([(z * w).sum() for z, w in zip(balanced(images()), weights, strict=True)]).sum()
    actual = gradients(balanced, total)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(actual[name], gradient, rtol=1e-10, atol=1e-12, msg=name)
    plain = gradients(net, torch.stack([(z * w).sum() for z, w in zip(net(images()), weights, strict=True)]).sum())
    assert not torch.allclose(plain["stem.scales.0.conv.weight"], actual["stem.scales.0.conv.weight"])


def test_values_are_the_plain_nets_to_the_bit() -> None:
    plain, balanced = built(PLAIN), built(PRETRAIN)
    assert plain.state_dict().keys() == balanced.state_dict().keys()
    for mode in (True, False):
        for ours, theirs in zip(balanced.train(mode)(images()), plain.train(mode)(images()), strict=True):
            assert torch.equal(ours, theirs)


def test_true_gradients_are_the_losses_own() -> None:
    plain, balanced = built(PLAIN), built(PRETRAIN)
    expected = gradients(plain, torch.stack(plain(images())).square().sum())
    with true_gradients(balanced):
        output = torch.stack(balanced(images())).square().sum()
    for name, gradient in gradients(balanced, output).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-10, atol=1e-12)


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own, on first use
def test_forward_mode_is_the_transpose_of_the_rescaled_backward() -> None:
    balanced, cotangent = built(PRETRAIN), torch.randn(4, 3, 5, dtype=torch.float64)
    parameters = {name: p.detach() for name, p in balanced.named_parameters()}
    direction = {name: torch.randn_like(p) for name, p in parameters.items()}

    def logits(at: dict[str, Tensor]) -> Tensor:
        return torch.stack(functional_call(balanced, at, (images(),)))

    for norm in [m for m in balanced.modules() if isinstance(m, torch.nn.BatchNorm2d)]:
        norm.track_running_stats = False
    _, along = torch.func.jvp(logits, (parameters,), (direction,))
    back = gradients(balanced, (torch.stack(balanced(images())) * cotangent).sum())
    expected = sum((back[name] * direction[name]).sum() for name in parameters)
    torch.testing.assert_close((along * cotangent).sum(), expected, rtol=1e-9, atol=0.0)
