"""Exits that collaborate, over a frozen net."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from trainer.models.build import build_model
from trainer.models.config import ModelConfig, ranet_cifar
from trainer.models.cost import exit_costs
from trainer.models.imta import ImtaNet

PLAIN = ModelConfig(num_exits=3, first_channels=4, growth=2, classifier_channels=8)
FINETUNE = dataclasses.replace(PLAIN, imta="finetune")


def images(num_images: int = 4) -> Tensor:
    return torch.randn(num_images, 3, 32, 32, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def built() -> ImtaNet:
    torch.manual_seed(0)
    net = build_model(FINETUNE, 5).double()
    assert isinstance(net, ImtaNet)
    return net


def test_exits_read_their_own_feature_and_the_logits_before() -> None:
    net = built().eval()
    with torch.no_grad():
        logits, features = net(images()), net.stem(images())
        for k, block in enumerate(net.blocks):
            features = block(features)
            classifier = net.classifiers[k]
            x = classifier.reads.pool(classifier.reads.convs(features[-1])).flatten(1)
            if k:
                linear, norm, _ = classifier.exit.inline
                y = F.linear(logits[k - 1], linear.weight, linear.bias)
                y = (y - norm.running_mean) / (norm.running_var + norm.eps).sqrt() * norm.weight + norm.bias
                x = torch.cat([x, y.clamp(min=0)], dim=1)
            expected = F.linear(x, classifier.exit.linear.weight, classifier.exit.linear.bias)
            torch.testing.assert_close(logits[k], expected, rtol=1e-10, atol=1e-12)


def test_head_over_what_is_seen_is_the_net() -> None:
    net = built()
    head, seen = net.head(), net.seen(images())
    assert {id(p) for p in head.parameters()} == {id(p) for p in net.parameters() if p.requires_grad}
    assert not seen.requires_grad
    for ours, theirs in zip(head(seen), net(images()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0.0)
    last = net.classifiers[-1].reads(_last_feature(net))
    torch.testing.assert_close(head.taught(seen), F.linear(last, net.teacher.weight, net.teacher.bias))


def _last_feature(net: ImtaNet) -> Tensor:
    with torch.no_grad():
        features = net.stem(images())
        for block in net.blocks:
            features = block(features)
    return features[-1]


def test_what_is_frozen_stays_to_the_bit() -> None:
    net = built()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        torch.stack(net.train()(images())).square().sum().backward()
        optimizer.step()
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]) == (net.source_name(name) is not None), name


def test_every_frozen_entry_comes_from_the_phase_1_net() -> None:
    net, plain = built(), build_model(PLAIN, 5)
    names = [net.source_name(name) for name in net.state_dict()]
    unread = {f"classifiers.{k}.linear.{part}" for k in range(2) for part in ("weight", "bias")}
    assert {name for name in names if name} == plain.state_dict().keys() - unread


def test_samples_that_leave_early_change_nothing_for_the_rest() -> None:
    net = built().eval()
    with torch.no_grad():
        expected = net(images(6))
        rows, features, logits = torch.arange(6), net.stem(images(6)), None
        for k in range(3):
            features, logits = net.step(k, features, logits)
            torch.testing.assert_close(logits, expected[k][rows], rtol=1e-10, atol=1e-12)
            rows, features, logits = rows[1:], [feature[1:] for feature in features], logits[1:]


def test_cost_counts_what_an_exit_runs() -> None:
    """Beside the plain exit: Linear C -> w, ReLU of w, and w more inputs of the last linear; batch-norm has 2 w."""
    plain, ours = exit_costs(PLAIN, 5, 32), exit_costs(FINETUNE, 5, 32)
    for k, (theirs, mine) in enumerate(zip(plain, ours, strict=True)):
        assert mine.mul_adds - theirs.mul_adds == k * (5 * 8 + 8 + 8 + 8 * 5)
        assert mine.params - theirs.params == k * (5 * 8 + 8 + 2 * 8 + 8 * 5)


def test_a_ranet_has_no_imta() -> None:
    with pytest.raises(ValueError, match=r"model\.imta is pretrain"):
        dataclasses.replace(ranet_cifar("c1"), imta="pretrain")
