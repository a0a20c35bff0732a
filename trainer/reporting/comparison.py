"""Several runs side by side on one self-contained page: those that differ in the seed alone are one row."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from trainer.config import Config, read_config
from trainer.reporting.plots import INK, dress, mul_add_unit, write_png
from trainer.reporting.provenance import FREE, command
from trainer.reporting.report import TEMPLATES, embedded, newest_evaluation
from trainer.settings import setting_names
from trainer.telemetry.jsonl import read_log

Row = Mapping[str, Any]
COLOURS = ("#1f4e79", "#d1495b", "#2a9d5c", "#8a5fbf", "#c98a1b", "#5b6b7a")


@dataclass(frozen=True)
class Run:
    """top1 [K] of its newest anytime figures, on `split`; mul_adds [K], none where `evaluate` did not come by yet"""

    folder: Path
    config: Config
    top1: tuple[float, ...]
    split: str
    mul_adds: tuple[float, ...]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Group:
    """Runs of the same settings but for the seed; `name` says in what they differ from the other groups."""

    name: str
    runs: tuple[Run, ...]

    @property
    def mean(self) -> list[float]:
        """[K] top-1, percent."""
        return [float(value) for value in np.mean([run.top1 for run in self.runs], axis=0)]

    @property
    def spread(self) -> list[float] | None:
        """[K] standard deviation over the seeds; None of a single run."""
        if len(self.runs) < 2:
            return None
        return [float(value) for value in np.std([run.top1 for run in self.runs], axis=0, ddof=1)]


def write_comparison(folders: Sequence[Path], page: Path) -> Path:
    """Write `page` (and its figures beside it, as PNG); the page's path.

    Raises ValueError where a folder is no run, was not evaluated yet, or has other exits than the first one.
    """
    runs = [_read(Path(folder)) for folder in folders]
    if len({len(run.top1) for run in runs}) > 1:
        counts = ", ".join(f"{run.folder} {len(run.top1)}" for run in runs)
        raise ValueError(f"runs with as many exits can be compared, but these have other numbers: {counts}")
    if len({run.split for run in runs}) > 1:
        splits = ", ".join(f"{run.folder} {run.split}" for run in runs)
        raise ValueError(f"runs scored on one split can be compared, but these were on others: {splits}")
    found = groups(runs)
    anytime, learning = _anytime_figure(found), _learning_figure(found)
    text = TEMPLATES.get_template("comparison.html").render(
        groups=found,
        first=found[0],
        num_exits=len(runs[0].top1),
        split=runs[0].split,
        commands=[(run.folder.name, command(run.config)) for run in runs],
        figures=[
            (embedded(anytime), "Top-1 of every exit over what it costs"),
            (embedded(learning), "Accuracy of the first and the last exit over epochs"),
        ],
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    temporary = page.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    write_png(anytime, page.with_name(f"{page.stem}-anytime.png"))
    write_png(learning, page.with_name(f"{page.stem}-learning.png"))
    return temporary.replace(page)


def read_groups(folders: Sequence[Path]) -> list[Group]:
    """The evaluated runs in `folders`, by their settings; ValueError as `write_comparison` raises it."""
    return groups([_read(Path(folder)) for folder in folders])


def groups(runs: Sequence[Run]) -> list[Group]:
    """The runs by their settings without the seed, in the order in which they are given."""
    settings = [
        {
            name: value
            for name, value in setting_names(run.config).items()
            if name != "seed" and not name.startswith(FREE)
        }
        for run in runs
    ]
    differing = [name for name in settings[0] if len({repr(one.get(name)) for one in settings}) > 1]
    members: dict[str, list[Run]] = {}
    for run, one in zip(runs, settings, strict=True):
        if differing == ["recipe"] or not differing:
            name = str(one["recipe"])
        else:
            name = ", ".join(f"{name.removeprefix('run.')} {one.get(name)}" for name in differing if name != "recipe")
        members.setdefault(name, []).append(run)
    return [Group(name, tuple(found)) for name, found in members.items()]


def _read(folder: Path) -> Run:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} is no run folder (it has no config.json); give one that train wrote")
    config, rows = read_config(folder / "config.json"), read_log(folder / "log.jsonl")
    kept = folder / "evaluation.json"
    evaluation: Row | None = json.loads(kept.read_text()) if kept.is_file() else newest_evaluation(rows)
    if evaluation is None:
        raise ValueError(f"{folder} was not evaluated yet; run earlybird evaluate {folder}")
    top1 = tuple(float(row["top1"]) for row in evaluation["anytime"])
    return Run(folder, config, top1, str(evaluation["split"]), tuple(evaluation["mul_adds"]), rows)


def _anytime_figure(found: Sequence[Group]) -> Figure:
    """Over multiply-adds where they are known of all, else over the exits' numbers."""
    figure = Figure(figsize=(11.0, 5.0), layout="constrained")
    axes = figure.subplots()
    places = [group.runs[0].mul_adds for group in found]
    scale, name = 1.0, "exit"
    if all(places):
        scale, unit = mul_add_unit([cost for costs in places for cost in costs])
        name = f"Mul-Adds per image, {unit}"
    else:
        places = [tuple(range(1, len(group.mean) + 1)) for group in found]
    dress(axes, "Anytime: every exit on every image", name, "top-1 accuracy, %")
    for number, (group, costs) in enumerate(zip(found, places, strict=True)):
        axes.errorbar(
            [cost / scale for cost in costs],
            group.mean,
            yerr=group.spread,
            color=COLOURS[number % len(COLOURS)],
            marker="o",
            ms=6,
            lw=2,
            capsize=4,
            label=group.name,
        )
    axes.legend(frameon=False, loc="lower right")
    return figure


def _learning_figure(found: Sequence[Group]) -> Figure:
    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    for axes, (place, name) in zip(figure.subplots(1, 2, sharey=True), ((0, "first"), (-1, "last")), strict=True):
        dress(axes, f"Validation, {name} exit", "iteration", "top-1, %" if place == 0 else "")
        for number, group in enumerate(found):
            for which, run in enumerate(group.runs):
                scored = [row for row in run.rows if row["event"] == "eval" and row["split"] == "val"]
                axes.plot(
                    [row["iteration"] for row in scored],
                    [row["exits"][place]["top1"] for row in scored],
                    color=COLOURS[number % len(COLOURS)],
                    marker=".",
                    lw=1.4,
                    label=None if which else group.name,
                )
        axes.tick_params(colors=INK)
    figure.axes[0].legend(frameon=False, loc="lower right")
    return figure
