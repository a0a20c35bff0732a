"""Every recipe knows how many classes it is published for, and only a recipe does."""

from __future__ import annotations

from dataclasses import replace

import pytest

from trainer.recipes.catalogue import classes_of, recipe, recipe_names


def test_classes_where_no_data_says_them() -> None:
    found = {name: classes_of(recipe(name)) for name in recipe_names()}
    assert {found[name] for name in found if name.startswith("imagenet")} == {1000}
    assert {found[name] for name in found if name.startswith("cifar100")} == {100}
    assert {found[name] for name in found if name.startswith("cifar10-")} == {10}
    assert {found[name] for name in found if name.startswith("demo")} == {14}
    demo = recipe("demo")
    assert classes_of(replace(demo, model=replace(demo.model, num_classes=3))) == 3


def test_a_configuration_of_no_recipe_must_say_its_classes() -> None:
    config = replace(recipe("cifar10-msdnet-5exits"), recipe="cifar10-mine")
    with pytest.raises(ValueError, match=r"'cifar10-mine' is no recipe .* set model\.num_classes"):
        classes_of(config)
    assert classes_of(replace(config, model=replace(config.model, num_classes=7))) == 7
