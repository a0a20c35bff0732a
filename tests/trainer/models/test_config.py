"""Shapes that no net can have are refused with the setting's name and a remedy."""

from __future__ import annotations

import dataclasses

import pytest

from trainer.models.config import ModelConfig, msdnet_cifar, msdnet_imagenet, ranet_cifar, ranet_imagenet


def test_layers_before_every_exit() -> None:
    assert msdnet_imagenet(6).layers_per_block == (4, 6, 6, 6, 6)
    assert msdnet_cifar(7).layers_per_block == (1, 2, 3, 4, 5, 6, 7)
    assert ranet_cifar("c1").layers_per_block == (2, 4, 6, 8, 10, 12)
    assert ranet_imagenet().layers_per_block == (8,) * 8


@pytest.mark.parametrize(
    ("config", "change", "words"),
    [
        (msdnet_cifar(5), {"growth": 0}, "model.growth is 0"),
        (msdnet_cifar(5), {"growth_factors": (1, 2)}, "one number a scale in both"),
        (msdnet_cifar(5), {"growth_factors": ()}, "one a scale"),
        (msdnet_cifar(5), {"reduction": 1.0}, "model.reduction is 1.0"),
        (msdnet_cifar(5), {"reduction": 0.01}, "no channel"),
        (msdnet_cifar(5), {"compression": 0.5}, "set model.net=ranet"),
        (msdnet_cifar(5), {"blocks": (2, 4)}, "set model.net=ranet"),
        (ranet_cifar("c1"), {"num_exits": 5}, "set model.num_exits=6"),
        (ranet_cifar("c1"), {"scales": (1, 3, 3)}, "1 more"),
        (ranet_cifar("c1"), {"blocks": (2, 2, 6)}, "more blocks than the coarser"),
        (ranet_cifar("c1"), {"blocks": (2, 6)}, "equally long"),
        (ranet_cifar("c1"), {"growth": 3}, "set model.growth=4 or more"),
    ],
)
def test_refusals(config: ModelConfig, change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(config, **change)
