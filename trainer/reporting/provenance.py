"""Where a run's figures come from: settings, the command that repeats it, what it ran on, where its time went."""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from trainer.config import Config
from trainer.recipes.catalogue import recipe, recipe_names
from trainer.run.checkpoint import step_folders
from trainer.settings import setting_names
from trainer.telemetry.goodput import Goodput

Row = Mapping[str, Any]

# Settings that change no figure of a report.
FREE = ("telemetry.", "checkpoint.", "run.log_every", "run.evaluat", "data.path", "data.num_threads", "data.prefetch")


def changed_settings(config: Config) -> list[tuple[str, Any, Any]]:
    """(name, value here, value of the recipe) of every setting in which a run differs from its recipe."""
    if config.recipe not in recipe_names():
        return []
    theirs = setting_names(recipe(config.recipe))
    ours = setting_names(config)
    return [
        (name, value, theirs.get(name))
        for name, value in ours.items()
        if value != theirs.get(name) and not name.startswith(FREE)
    ]


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
    for folder in step_folders(run / "checkpoints")[:-4:-1]:  # the newest one may be torn
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            found += [(name, str(version)) for name, version in sorted(manifest["versions"].items())]
            break
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            continue
    return found


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
