"""IMTA's phases over an MSDNet recipe: NAME-imta-pretrain, then NAME-imta-finetune --from its run (METHOD: IMTA)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from trainer.config import Config
from trainer.recipes.recipe import Recipe

_PHASES: dict[Literal["pretrain", "finetune"], str] = {
    "pretrain": "IMTA, phase 1: gradient equilibrium.",
    "finetune": "IMTA, phase 2: that net frozen, exits that collaborate, distilled (--from RUN).",
}


def imta_recipes(recipes: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """Both phases of every recipe given, by name; epochs, batches and schedules are the recipe's own in each."""
    return {f"{name}-imta-{phase}": _phase(name, base, phase) for name, base in recipes.items() for phase in _PHASES}


def _phase(name: str, base: Recipe, phase: Literal["pretrain", "finetune"]) -> Recipe:
    def build() -> Config:
        config = base.build()
        return replace(config, model=replace(config.model, imta=phase))

    begins = " --from runs/" + name + "-imta-pretrain" if phase == "finetune" else ""
    build.__doc__ = f"{base.first_line} {_PHASES[phase]}\n\nearlybird train {name}-imta-{phase}{begins}"
    return Recipe(build, base.num_classes)
