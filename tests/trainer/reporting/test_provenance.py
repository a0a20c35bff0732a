from __future__ import annotations

import shlex

import pytest

from trainer.config import resolve
from trainer.reporting.provenance import changed_settings, command, starts, where_time_went
from trainer.settings import setting_names

TRAIN = {"event": "train", "num_iterations": 10, "data_wait_seconds": 1.0}
LOG = [
    {"event": "start", "time": 100.0, "iteration": 0, "process_began": 90.0},
    {**TRAIN, "time": 120.0, "iteration": 10, "seconds": 20.0},
    {**TRAIN, "time": 140.0, "iteration": 20, "seconds": 20.0},
    {"event": "start", "time": 200.0, "iteration": 10, "process_began": 180.0},  # killed, again from iteration 10
    {**TRAIN, "time": 220.0, "iteration": 20, "seconds": 20.0},
    {"event": "end", "time": 221.0, "status": "completed"},
]


@pytest.mark.parametrize(
    "settings",
    [
        [],
        ["run.epochs=3", "model.growth_factors=1,1,2", "precision.compile=true", "optim.base_lr=0.25"],
        ["data.path=/a folder/of images", "data.source=auto", "sample_weights.enabled=false", "seed=7"],
    ],
)
def test_the_command_repeats_the_run(settings: list[str]) -> None:
    config = resolve("demo", [*settings, "telemetry.port=9400", "checkpoint.keep=9"])
    words = shlex.split(command(config))
    assert words[:3] == ["earlybird", "train", "demo"]
    again = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    if "--data" in words:
        again += ["data.source=auto", f"data.path={words[words.index('--data') + 1]}"]
    assert changed_settings(resolve("demo", again)) == changed_settings(config)
    assert setting_names(resolve("demo", again))["data.path"] == config.data.path
    assert not any(word.startswith(("telemetry.", "checkpoint.")) for word in words)


def test_where_the_time_went_adds_up_over_restarts() -> None:
    parts = where_time_went(LOG)
    shares = {name: share for name, _, share in parts}
    assert sum(shares.values()) == pytest.approx(1.0)
    assert next(iter(shares)) == "training"
    assert shares["lost work"] == pytest.approx(shares["training"] / 2), "iterations 11 to 20 were trained twice"
    assert shares["recovery"] > 0
    assert where_time_went([]) == []


def test_every_start_and_how_it_ended() -> None:
    assert starts(LOG) == [
        ("1970-01-01 00:01 UTC", 0, "without an end"),
        ("1970-01-01 00:03 UTC", 10, "completed"),
    ]
