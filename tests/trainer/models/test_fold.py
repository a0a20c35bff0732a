"""A folded net gives the same logits, and holds no batch-norm."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from trainer.models.build import build_model
from trainer.models.config import ModelConfig, msdnet_cifar, ranet_cifar
from trainer.models.fold import folded
from trainer.models.multi_exit import MultiExitNet

_MSDNET = dataclasses.replace(msdnet_cifar(3), first_channels=6, growth=4, classifier_channels=8)
_CONFIGS = {
    "msdnet": _MSDNET,
    "ranet": dataclasses.replace(ranet_cifar("c1"), first_channels=4, classifier_channels=8),
    "imagenet stem": dataclasses.replace(_MSDNET, stem="imagenet", num_exits=2),
    "imta pretrained": dataclasses.replace(_MSDNET, imta="pretrain"),
    "imta finetuned": dataclasses.replace(_MSDNET, imta="finetune"),
}


def trained_net(config: ModelConfig) -> MultiExitNet:
    """In float64, with weights and statistics as training leaves them: nothing is 0 or 1."""
    torch.manual_seed(0)
    net = build_model(config, 5).double()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias)
    return net


@pytest.mark.parametrize("name", _CONFIGS)
def test_a_folded_net_gives_the_same_logits(name: str) -> None:
    net, size = trained_net(_CONFIGS[name]), 128 if name == "imagenet stem" else 32
    before = {key: value.clone() for key, value in net.state_dict().items()}
    images = torch.randn(3, 3, size, size, dtype=torch.float64)
    small = folded(net)
    with torch.no_grad():
        expected, found = net.eval()(images), small(images)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert not any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in small.modules())
    assert not any(parameter.requires_grad for parameter in small.parameters())
    torch.testing.assert_close(dict(net.state_dict()), before, rtol=0, atol=0)


def test_what_cannot_be_folded_is_refused() -> None:
    net = trained_net(_MSDNET)
    net.stem = nn.Sequential(nn.BatchNorm2d(3), net.stem)
    with pytest.raises(ValueError, match=r"stem\.0 follows no convolution"):
        folded(net)
