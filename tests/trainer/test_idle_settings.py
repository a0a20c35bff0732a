"""A setting without effect is refused where it was changed, and nowhere else."""

from __future__ import annotations

import logging

import pytest

from trainer.config import resolve

CIFAR = "cifar10-msdnet-5exits"


@pytest.mark.parametrize(
    ("recipe", "idle", "effective"),
    [
        ("demo", "meta.difference=0.01", "meta.form=finite_difference"),
        ("demo", "health.max_rollbacks=9", "health.non_finite=rollback"),
        ("demo", "health.max_skips=9", "health.non_finite=skip"),
        ("demo", "health.max_skips=9", "precision.dtype=fp16"),
        ("demo", "telemetry.push_every=5", "telemetry.pushgateway=http://host:9091"),
        ("demo", "data.padding=8", "data.augmentation=cifar"),
        (CIFAR, "data.resize_size=300", "data.augmentation=imagenet"),
        ("demo", "optim.warmup_epochs=40", "run.epochs=41"),
    ],
)
def test_refused_where_it_changes_nothing(recipe: str, idle: str, effective: str) -> None:
    name, _, value = idle.partition("=")
    with pytest.raises(ValueError, match=rf"^{name} is {value}"):
        resolve(recipe, ["run.epochs=40", idle])
    resolve(recipe, ["run.epochs=40", idle, effective])


def test_what_a_recipe_itself_says_is_no_change() -> None:
    usual = resolve("demo", []).data
    assert usual.augmentation == "imagenet"
    resolve("demo", ["data.augmentation=cifar"])  # its own resize_size stays behind
    resolve("demo", [f"data.resize_size={usual.resize_size}", "data.augmentation=cifar", "health.max_skips=20"])


def test_a_baseline_may_have_the_weighted_runs_command(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    given = ["meta.lr=0.002", "weight_net.width=9"]
    resolve("demo", given)
    assert not caplog.records
    resolve("demo", [*given, "sample_weights.enabled=false"])
    resolve("demo-baseline", [*given, "run.epochs=3"])
    told = "no effect in a run without sample weights: weight_net.width, meta.lr"
    assert [record.message for record in caplog.records] == [told, told]
