"""Every recipe by its name; each has an unweighted twin whose name ends in -baseline."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from trainer.config import Config
from trainer.recipes import cifar, demo, imagenet
from trainer.recipes.imta import imta_recipes
from trainer.recipes.long_tail import long_tail_recipes
from trainer.settings import nearest

BASELINE = "-baseline"
_CLASSES = {"imagenet": 1000, "cifar100": 100, "cifar10": 10, "demo": 14}  # of what a recipe is published for

_WEIGHTED: dict[str, Callable[[], Config]] = {
    "demo": demo.demo,
    "imagenet-msdnet-step4": imagenet.msdnet_step4,
    "imagenet-msdnet-step6": imagenet.msdnet_step6,
    "imagenet-msdnet-step7": imagenet.msdnet_step7,
    "imagenet-ranet": imagenet.ranet,
    "cifar10-msdnet-5exits": cifar.cifar10_msdnet_5exits,
    "cifar10-msdnet-7exits": cifar.cifar10_msdnet_7exits,
    "cifar100-msdnet-5exits": cifar.cifar100_msdnet_5exits,
    "cifar100-msdnet-7exits": cifar.cifar100_msdnet_7exits,
    "cifar10-ranet-c1": cifar.cifar10_ranet_c1,
    "cifar10-ranet-c2": cifar.cifar10_ranet_c2,
    "cifar100-ranet-c1": cifar.cifar100_ranet_c1,
    "cifar100-ranet-c2": cifar.cifar100_ranet_c2,
}
_WEIGHTED |= long_tail_recipes({name: build for name, build in _WEIGHTED.items() if name.startswith("cifar")}) | (
    imta_recipes({name: build for name, build in _WEIGHTED.items() if "msdnet" in name or name == "demo"})
)


def recipe_names() -> list[str]:
    return [name for weighted in _WEIGHTED for name in (weighted, weighted + BASELINE)]


def recipe(name: str) -> Config:
    """The whole configuration of a recipe; ValueError with the nearest name where there is none."""
    if name not in recipe_names():
        raise ValueError(f"unknown recipe {name!r}{nearest(name, recipe_names())} (earlybird recipes lists them)")
    config = dataclasses.replace(_WEIGHTED[name.removesuffix(BASELINE)](), recipe=name)
    if name.endswith(BASELINE):
        unweighted = dataclasses.replace(config.sample_weights, enabled=False)
        config = dataclasses.replace(config, sample_weights=unweighted)
    return config


def classes_of(config: Config) -> int:
    """Number of classes where no data says it: as set, else of what the recipe is published for."""
    return config.model.num_classes or _CLASSES[config.recipe.split("-")[0]]


def describe(name: str) -> str:
    """First line of the recipe's docstring."""
    text = (_WEIGHTED[name.removesuffix(BASELINE)].__doc__ or "").strip().splitlines()[0]
    return text + (" Unweighted." if name.endswith(BASELINE) else "")
