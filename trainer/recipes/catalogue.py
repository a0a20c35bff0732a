"""Every recipe by its name; each has an unweighted twin whose name ends in -baseline."""

from __future__ import annotations

import dataclasses

from trainer.config import Config
from trainer.recipes import cifar, demo, imagenet
from trainer.recipes.imta import imta_recipes
from trainer.recipes.long_tail import long_tail_recipes
from trainer.recipes.recipe import Recipe
from trainer.settings import nearest

BASELINE = "-baseline"

_WEIGHTED: dict[str, Recipe] = {
    "demo": Recipe(demo.demo, 14),
    "imagenet-msdnet-step4": Recipe(imagenet.msdnet_step4, 1000),
    "imagenet-msdnet-step6": Recipe(imagenet.msdnet_step6, 1000),
    "imagenet-msdnet-step7": Recipe(imagenet.msdnet_step7, 1000),
    "imagenet-ranet": Recipe(imagenet.ranet, 1000),
    "cifar10-msdnet-5exits": Recipe(cifar.cifar10_msdnet_5exits, 10),
    "cifar10-msdnet-7exits": Recipe(cifar.cifar10_msdnet_7exits, 10),
    "cifar100-msdnet-5exits": Recipe(cifar.cifar100_msdnet_5exits, 100),
    "cifar100-msdnet-7exits": Recipe(cifar.cifar100_msdnet_7exits, 100),
    "cifar10-ranet-c1": Recipe(cifar.cifar10_ranet_c1, 10),
    "cifar10-ranet-c2": Recipe(cifar.cifar10_ranet_c2, 10),
    "cifar100-ranet-c1": Recipe(cifar.cifar100_ranet_c1, 100),
    "cifar100-ranet-c2": Recipe(cifar.cifar100_ranet_c2, 100),
}
_WEIGHTED |= long_tail_recipes({name: base for name, base in _WEIGHTED.items() if name.startswith("cifar")}) | (
    imta_recipes({name: base for name, base in _WEIGHTED.items() if "msdnet" in name or name == "demo"})
)


def recipe_names() -> list[str]:
    return [name for weighted in _WEIGHTED for name in (weighted, weighted + BASELINE)]


def recipe(name: str) -> Config:
    """The whole configuration of a recipe; ValueError with the nearest name where there is none."""
    if name not in recipe_names():
        raise ValueError(f"unknown recipe {name!r}{nearest(name, recipe_names())} (earlybird recipes lists them)")
    config = dataclasses.replace(_WEIGHTED[name.removesuffix(BASELINE)].build(), recipe=name)
    if name.endswith(BASELINE):
        unweighted = dataclasses.replace(config.sample_weights, enabled=False)
        config = dataclasses.replace(config, sample_weights=unweighted)
    return config


def published_classes(name: str) -> int:
    """Number of classes of the set that a recipe is published for; 0 where there is no such recipe."""
    return _WEIGHTED[name.removesuffix(BASELINE)].num_classes if name in recipe_names() else 0


def classes_of(config: Config) -> int:
    """Number of classes where no data says it: as set, else of what the recipe is published for. ValueError where
    neither says it."""
    num_classes = config.model.num_classes or published_classes(config.recipe)
    if not num_classes:
        raise ValueError(
            f"{config.recipe!r} is no recipe of this version, so nothing says how many classes its net tells apart; "
            f"set model.num_classes"
        )
    return num_classes


def describe(name: str) -> str:
    """First line of the recipe's docstring."""
    return _WEIGHTED[name.removesuffix(BASELINE)].first_line + (" Unweighted." if name.endswith(BASELINE) else "")
