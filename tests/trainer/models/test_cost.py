"""Cost of every exit: the authors' count, and fvcore's to the last operation."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

from trainer.models.config import ModelConfig, msdnet_cifar, msdnet_imagenet, ranet_cifar, ranet_imagenet
from trainer.models.cost import exit_costs, exit_operations, fvcore_costs


def net_named(name: str) -> tuple[ModelConfig, int, int]:
    """Config, classes and image size of a net as the reference file names it."""
    if found := re.fullmatch(r"msdnet_imagenet_(?:base(\d+)_)?step(\d+)", name):
        return dataclasses.replace(msdnet_imagenet(int(found[2])), base=int(found[1] or 4)), 1000, 224
    if found := re.fullmatch(r"msdnet_cifar(\d+)_(\d)exits", name):
        return msdnet_cifar(int(found[2])), int(found[1]), 32
    if found := re.fullmatch(r"ranet_(c1|c2)_cifar(\d+)", name):
        return ranet_cifar("c1" if found[1] == "c1" else "c2"), int(found[2]), 32
    assert name == "ranet_imagenet_step8"
    return ranet_imagenet(), 1000, 224


def test_reference_digits_of_every_net(vectors_folder: Path) -> None:
    for name, expected in json.loads((vectors_folder / "costs.json").read_text()).items():
        costs = exit_costs(*net_named(name))
        assert [round(cost.mul_adds / 1e6, 3) for cost in costs] == expected["mul_adds_M"], name
        assert [round(cost.params / 1e6, 4) for cost in costs] == expected["params_M"], name


@pytest.mark.parametrize("name", ["msdnet_cifar100_5exits", "ranet_c1_cifar10", "msdnet_imagenet_step4"])
def test_fvcore_differs_by_relu_pooling_and_linear_bias_alone(name: str) -> None:
    net = net_named(name)
    rows = zip(exit_costs(*net), exit_operations(*net), fvcore_costs(*net), strict=True)
    for cost, operations, fvcore in rows:
        assert cost.mul_adds - fvcore == operations.relu + operations.pooling + operations.linear_bias
        assert min(operations.relu, operations.pooling, operations.linear_bias) > 0
