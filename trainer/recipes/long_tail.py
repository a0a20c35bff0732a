"""Long-tailed CIFAR: class c keeps N_c * mu^c training images (METHOD: long-tailed CIFAR)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from trainer.config import Config
from trainer.recipes.recipe import Recipe

IMBALANCE_FACTOR = 100.0  # the field's usual one: the last class keeps a hundredth of the first one's share


def long_tail_recipes(recipes: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """cifarN-lt-NET for every cifarN-NET; data.imbalance_factor, or that 0 and data.long_tail_mu, set another tail."""
    named = {name.replace("-", "-lt-", 1): base for name, base in recipes.items()}
    return {name: _long_tailed(name, base) for name, base in named.items()}


def _long_tailed(name: str, base: Recipe) -> Recipe:
    def build() -> Config:
        config = base.build()
        return replace(config, data=replace(config.data, imbalance_factor=IMBALANCE_FACTOR))

    archive = "cifar-10-python.tar.gz" if name.startswith("cifar10-") else "cifar-100-python.tar.gz"
    first_line = f"{base.first_line} Long-tailed, imbalance factor {IMBALANCE_FACTOR:g}."
    build.__doc__ = f"{first_line}\n\nearlybird train {name} --data {archive}"
    return Recipe(build, base.num_classes)
