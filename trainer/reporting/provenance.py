"""Where a run's figures come from: settings, the command that repeats it, what it ran on, where its time went."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

from trainer.config import Config
from trainer.recipes.catalogue import recipe, recipe_names
from trainer.run.checkpoint import step_folders
from trainer.settings import setting_names
from trainer.telemetry.goodput import Goodput

Row = Mapping[str, Any]
T = TypeVar("T")

# Settings that change no figure of a report.
FREE = ("telemetry.", "checkpoint.", "run.log_every", "run.evaluat", "data.path", "data.num_threads", "data.prefetch")


@dataclass(frozen=True)
class TrainedOn:
    """The set that a run was trained on: its classes, and its training images with those held out; 0 where nothing in
    the run's folder says it."""

    num_classes: int = 0
    num_images: int = 0


def differing(ours: Config, theirs: Config) -> dict[str, tuple[Any, Any]]:
    """{setting: (our value, theirs)} of every setting that differs and changes figures."""
    known = setting_names(theirs)
    return {
        name: (value, known.get(name))
        for name, value in setting_names(ours).items()
        if value != known.get(name) and not name.startswith(FREE)
    }


def changed_settings(config: Config) -> list[tuple[str, Any, Any]]:
    """(name, value here, value of the recipe) of every setting in which a run differs from its recipe."""
    if config.recipe not in recipe_names():
        return []
    return [(name, *pair) for name, pair in differing(config, recipe(config.recipe)).items()]


def command(config: Config) -> str:
    """What trains the same again, up to settings that change no figure."""
    words = ["earlybird", "train", config.recipe]
    if config.data.path:
        words += ["--data", str(config.data.path)]
    if config.origin.run:
        words += ["--from", config.origin.run]
    for name, value, _ in changed_settings(config):
        if not (config.data.path and name == "data.source") and not name.startswith("origin."):  # --data, --from
            words += ["--set", f"{name}={_as_text(value)}"]
    return shlex.join(words)


def _as_text(value: Any) -> str:
    return ",".join(map(_as_text, value)) if isinstance(value, list | tuple) else str(value)


def environment(run: Path, rows: Sequence[Row]) -> list[tuple[str, str]]:
    """(name, value): what the run was on, as far as its log and its newest checkpoint say."""
    found = []
    begun = [row for row in rows if row["event"] == "start"]
    if begun:
        names = {"data": "data", "host": "host", "world_size": "ranks"}
        found += [(shown, str(begun[-1][name])) for name, shown in names.items() if name in begun[-1]]
    versions = _of_manifest(run, lambda manifest: sorted(manifest["versions"].items())) or []
    return [*found, *((name, str(version)) for name, version in versions)]


def trained_on(run: Path, rows: Sequence[Row], evaluation: Row | None) -> TrainedOn:
    """As its log says it; of a run without one (an imported net) as its newest checkpoint and its evaluation do."""
    told = [row for row in rows if row["event"] == "start" and "num_classes" in row]
    if told:
        return TrainedOn(told[-1]["num_classes"], told[-1]["num_images"])
    classes: Sequence[Row] = (evaluation or {}).get("per_class", [])
    num_classes = _of_manifest(run, lambda manifest: len(manifest["meta"]["classes"])) or len(classes)
    num_train = sum(row["num_train"] for row in classes)
    return TrainedOn(num_classes, num_train + evaluation["num_heldout"] if evaluation and num_train else 0)


def _of_manifest(run: Path, value: Callable[[Row], T]) -> T | None:
    """A value of the newest checkpoint's manifest that holds it."""
    for folder in step_folders(run / "checkpoints")[:-4:-1]:  # the newest one may be torn
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            return value(json.loads((folder / "manifest.json").read_text()))
    return None


def where_time_went(rows: Sequence[Row]) -> list[tuple[str, str, float]]:
    """(what, h:mm:ss, share) of the run's wall time over all its starts: training, then what was not, longest first."""
    account = Goodput(rows)
    parts = {"training": account.productive_seconds}
    parts |= dict(sorted(account.badput.items(), key=lambda part: -part[1]))
    total = sum(parts.values())
    if not total:
        return []
    return [
        (name.replace("_", " "), str(timedelta(seconds=round(seconds))), seconds / total)
        for name, seconds in parts.items()
        if seconds > 0
    ]


def starts(rows: Sequence[Row]) -> list[tuple[str, int, str]]:
    """(when, after how many iterations, how it ended) of every process that trained the run."""
    found: list[tuple[str, int, str]] = []
    for row in rows:
        if row["event"] == "start":
            when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(row["time"]))
            found.append((f"{when} UTC", row["iteration"], "without an end"))
        elif row["event"] == "end" and found:
            found[-1] = (*found[-1][:2], str(row.get("status", "by an error")))
    return found
