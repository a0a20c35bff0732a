"""Noise leaves a random net at different exits."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from trainer.benchmark.random_net import SPREAD, noise, random_net
from trainer.config import Config
from trainer.models.config import ModelConfig, ranet_cifar
from trainer.recipes.demo import demo

_MSDNET = ModelConfig(num_exits=3, num_classes=10, first_channels=8, growth=4, classifier_channels=16)
_MODELS = {
    "msdnet": _MSDNET,
    "running statistics": dataclasses.replace(_MSDNET, batch_norm="running"),
    "imta pretrained": dataclasses.replace(_MSDNET, imta="pretrain"),
    "imta finetuned": dataclasses.replace(_MSDNET, imta="finetune"),
    "ranet": dataclasses.replace(ranet_cifar("c2"), first_channels=8, growth=4, classifier_channels=16),
}


def config_of(model: ModelConfig) -> Config:
    return dataclasses.replace(demo(), model=model)


@pytest.mark.parametrize("name", _MODELS)
@torch.inference_mode()
def test_confidences_of_unseen_noise_spread(name: str) -> None:
    config = config_of(_MODELS[name])
    net = random_net(config, 10, torch.device("cpu"))
    assert not any(module.training for module in net.modules())
    for logits in net(noise(64, config.data.image_size, seed=99)):
        assert SPREAD / 2 < float(logits.std()) < 2 * SPREAD
        confidences = logits.softmax(1).amax(1)
        assert len(confidences.unique()) == 64
        assert float(confidences.max() - confidences.min()) > 0.3
        assert len(logits.argmax(1).unique()) > 3


def test_the_seed_sets_the_weights() -> None:
    first, same, other = (
        random_net(dataclasses.replace(config_of(_MSDNET), seed=seed), 10, torch.device("cpu")) for seed in (1, 1, 2)
    )
    torch.testing.assert_close(dict(first.state_dict()), dict(same.state_dict()), rtol=0, atol=0)
    name = "stem.scales.0.conv.weight"
    assert not torch.equal(first.state_dict()[name], other.state_dict()[name])
