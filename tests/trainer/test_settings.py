"""`--set group.field=value`: types, ranges, names."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import Config, resolve, to_dict
from trainer.recipes.catalogue import recipe, recipe_names
from trainer.settings import apply_settings, from_dict, setting_names


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_survives_json(name: str) -> None:
    config = recipe(name)
    assert config.recipe == name
    assert from_dict(Config, json.loads(json.dumps(to_dict(config)))) == config


@pytest.mark.parametrize("name", recipe_names())
def test_every_setting_can_be_given_back(name: str) -> None:
    """Setting every field to the text of its own value changes nothing."""
    config = recipe(name)
    texts = []
    for setting, value in setting_names(config).items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        texts.append(f"{setting}={text}")
    assert apply_settings(config, texts) == config


def test_values_take_their_field_type() -> None:
    config = resolve(
        "cifar10-msdnet-5exits",
        ["meta.interval=7", "meta.ratio=0.5", "precision.compile=true", "data.mean=0.1,0.2,0.3", "seed=3"],
    )
    assert (config.meta.interval, config.meta.ratio, config.precision.compile, config.seed) == (7, 0.5, True, 3)
    assert config.data.mean == (0.1, 0.2, 0.3)
    assert config.optim == recipe("cifar10-msdnet-5exits").optim


@pytest.mark.parametrize("order", [1, -1])
def test_settings_that_fit_together_are_taken_in_any_order(order: int) -> None:
    settings = ["data.image_size=300", "data.resize_size=320", "optim.update_batch=9", "optim.accumulation=3"]
    config = resolve("imagenet-msdnet-step4", settings[::order])
    assert (config.data.image_size, config.data.resize_size, config.optim.accumulation) == (300, 320, 3)


@given(interval=st.integers(1, 10**6), ratio=st.floats(1e-3, 1e3), seed=st.integers(0, 2**62))
def test_numbers_are_read_as_written(interval: int, ratio: float, seed: int) -> None:
    config = resolve("demo", [f"meta.interval={interval}", f"meta.ratio={ratio!r}", f"seed={seed}"])
    assert (config.meta.interval, config.meta.ratio, config.seed) == (interval, ratio, seed)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("meta.intervall=3", "did you mean meta.interval"),
        ("metas=3", "unknown setting"),
        ("meta=3", "unknown setting"),
        ("meta.interval", "expected group.field=value"),
        ("meta.interval=often", "must be a whole number"),
        ("meta.interval=1.5", "must be a whole number"),
        ("meta.interval=0", "must be at least 1"),
        ("meta.ratio=-1", "must be positive"),
        ("meta.form=exakt", "did you mean exact"),
        ("precision.compile=maybe", "must be true or false"),
        ("data.mean=1,2", "takes 3 values"),
        ("data.heldout=-0.1", "data.heldout is -0.1"),
        ("optim.accumulation=3", "divide"),
        ("sample_weights.epsilon=2", "(0, 1]"),
        ("seed=-1", "seed is -1"),
    ],
)
def test_bad_settings_are_refused_by_name(setting: str, said: str) -> None:
    with pytest.raises(ValueError, match=r"\w") as refusal:
        resolve("cifar10-msdnet-5exits", [setting])
    assert said in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"did you mean imagenet-msdnet-step4\?"):
        resolve("imagenet-msdnet-stp4", [])


def test_baseline_differs_in_one_setting() -> None:
    for name in recipe_names():
        if not name.endswith("-baseline"):
            weighted, baseline = recipe(name), recipe(f"{name}-baseline")
            assert not baseline.sample_weights.enabled
            same = dataclasses.replace(
                baseline, recipe=name, sample_weights=dataclasses.replace(baseline.sample_weights, enabled=True)
            )
            assert same == weighted
