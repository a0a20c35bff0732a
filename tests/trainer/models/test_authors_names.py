"""The map of names is one to one, and says what does not fit."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from trainer.models.authors_names import (
    authors_names,
    from_authors,
    model_config_from_authors_options,
    to_authors,
    weight_net_from_authors,
    weight_net_to_authors,
)
from trainer.models.build import build_model
from trainer.models.config import ModelConfig, msdnet_cifar, msdnet_imagenet, ranet_cifar, ranet_imagenet
from trainer.models.weight_net import WeightNet, WeightNetConfig

OPTIONS = {
    "data": "cifar100",
    "nBlocks": 7,
    "base": 1,
    "step": 1,
    "stepmode": "lin_grow",
    "nChannels": 16,
    "growthRate": 6,
    "grFactor": "1-2-4",
    "bnFactor": [1, 2, 4],
    "nScales": 3,
    "prune": "max",
    "reduction": 0.5,
    "bottleneck": True,
}


@pytest.mark.parametrize("config", [msdnet_cifar(7), msdnet_imagenet(6), ranet_cifar("c2"), ranet_imagenet()])
def test_one_name_for_one_name(config: ModelConfig) -> None:
    names = authors_names(config)
    with torch.device("meta"):
        assert list(names) == list(build_model(config, 3).state_dict())
    assert len(set(names.values())) == len(names)


def test_round_trip_with_a_prefix() -> None:
    config = dataclasses.replace(ranet_cifar("c1"), growth=4, base=1, step=1)
    state = build_model(config, 3).state_dict()
    theirs = {f"module.{name}": value for name, value in to_authors(config, state).items()}
    back = from_authors(config, theirs)
    assert back.keys() == state.keys()
    assert all(back[name] is state[name] for name in state)


def test_what_does_not_fit_is_named() -> None:
    config = msdnet_cifar(5)
    theirs = to_authors(config, build_model(config, 3).state_dict())
    theirs["head.weight"] = theirs.pop("classifier.0.linear.weight")
    with pytest.raises(ValueError, match=r"missing, first classifier.0.linear.weight .* unexpected, first head.weight"):
        from_authors(config, theirs)


@pytest.mark.parametrize("depth", [1, 4])
def test_weight_net_round_trip(depth: int) -> None:
    state = WeightNet(WeightNetConfig(depth=depth, width=10), 5).state_dict()
    theirs = weight_net_to_authors(state)
    assert {"first_hidden_layer.fc.weight", "output_layer.bias"} <= theirs.keys()
    assert weight_net_from_authors(theirs).keys() == state.keys()
    del theirs["output_layer.bias"]
    with pytest.raises(ValueError, match=r"missing, first output_layer.bias"):
        weight_net_from_authors(theirs)


def test_their_options_are_our_presets() -> None:
    assert model_config_from_authors_options(OPTIONS) == msdnet_cifar(7)


@pytest.mark.parametrize(
    ("name", "value"), [("prune", "min"), ("bottleneck", False), ("stepmode", "lg"), ("nScales", 4)]
)
def test_options_of_other_nets_are_refused(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"option {name} is"):
        model_config_from_authors_options({**OPTIONS, name: value})
