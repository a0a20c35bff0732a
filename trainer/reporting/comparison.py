"""Several runs side by side on one self-contained page: those that differ in the seed alone are one row."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from trainer.config import Config, read_config
from trainer.evaluation.cost_curve import common_costs, top1_at
from trainer.evaluation.per_class import SIZES
from trainer.reporting.comparison_plot import accuracy_over_cost, learning_curves
from trainer.reporting.estimate import Estimate, of_difference, of_mean
from trainer.reporting.plots import mul_add_unit, write_png
from trainer.reporting.provenance import FREE, TrainedOn, command, trained_on
from trainer.reporting.report import TEMPLATES, embedded, newest_evaluation
from trainer.settings import setting_names
from trainer.telemetry.jsonl import read_log

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """What is known of a run.

    top1      [K] of its newest anytime figures, percent, on `split`
    mul_adds  [K] per image; curve  39 points (expected Mul-Adds, top-1) of budgeted batch; both empty where `evaluate`
              did not come by yet
    shots     [K] top-1 of the classes of many, medium and few training images, those of them that there are
    """

    folder: Path
    config: Config
    top1: tuple[float, ...]
    split: str
    mul_adds: tuple[float, ...]
    curve: tuple[tuple[float, float], ...]
    rows: Sequence[Row]
    trained_on: TrainedOn = field(default_factory=TrainedOn)
    shots: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


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
        return _spread([run.top1 for run in self.runs])

    @property
    def seeds(self) -> list[int]:
        """In ascending order."""
        return sorted(run.config.seed for run in self.runs)

    @property
    def repeated(self) -> bool:
        """Whether a seed comes twice: such runs are not independent, and have no confidence interval."""
        return len(set(self.seeds)) < len(self.runs)

    def exits(self) -> list[Estimate]:
        """[K] the mean top-1 of each exit, percent."""
        return [self.estimate(_exit(k)) for k in range(len(self.mean))]

    def shot(self, name: str) -> list[Estimate]:
        """[K] the mean top-1 of the classes of so many training images, percent."""
        return [self.estimate(_shot(name, k)) for k in range(len(self.mean))]

    def shot_spread(self, name: str) -> list[float] | None:
        """[K] as `spread`."""
        return _spread([run.shots[name] for run in self.runs])

    def curve(self, costs: np.ndarray) -> list[Estimate]:
        """[len(costs)] the mean top-1 of budgeted batch at each of `costs`."""
        points = {run.folder: top1_at(run.curve, costs) for run in self.runs}
        return [self.estimate(_point(points, i)) for i in range(len(costs))]

    def budgeted(self, costs: np.ndarray) -> Estimate:
        """The mean over `costs` of budgeted batch's top-1."""
        return self.estimate(_over(costs))

    def estimate(self, value: Callable[[Run], float]) -> Estimate:
        """The mean of a value over the runs."""
        found = of_mean(self.values(value))
        return replace(found, margin=None) if self.repeated else found

    def values(self, value: Callable[[Run], float]) -> list[float]:
        """In the order of the seeds, so that no order of the folders changes a digit."""
        return [value(run) for run in sorted(self.runs, key=lambda run: (run.config.seed, str(run.folder)))]


@dataclass(frozen=True)
class Difference:
    """Group `ours` minus group `theirs`, in percentage points.

    paired    by seed: both groups have the same ones
    exits     [K]; budgeted  of the means over all common costs, None where these are not known
    shots     [K] of the classes of many, medium and few training images; {} where not every run has such figures
    """

    ours: Group
    theirs: Group
    paired: bool
    exits: tuple[Estimate, ...]
    budgeted: Estimate | None
    shots: Mapping[str, tuple[Estimate, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Groups in the order of their first runs.

    costs        [100] expected Mul-Adds that every run's budgeted curve covers, in ascending order; [0] where there
                 are none
    missing      why there are none, "" where there are
    differences  each other group minus the first one
    """

    groups: tuple[Group, ...]
    costs: np.ndarray
    missing: str
    differences: tuple[Difference, ...]

    @property
    def split(self) -> str:
        return self.groups[0].runs[0].split

    @property
    def shots(self) -> tuple[str, ...]:
        """Those that every run has figures of (`common_shots`)."""
        return common_shots([run for group in self.groups for run in group.runs])

    @property
    def reach(self) -> str:
        """The range of the common costs, for readers; "" without any."""
        if not len(self.costs):
            return ""
        scale, unit = mul_add_unit(list(self.costs))
        return f"{self.costs[0] / scale:.3g} to {self.costs[-1] / scale:.3g} {unit} Mul-Adds"


def compare(folders: Sequence[Path]) -> Comparison:
    """The runs in `folders`, in groups, and how the groups differ.

    Raises ValueError where a folder is no run, was not evaluated yet, or has other exits or another split than the
    first one.
    """
    runs = [_read(Path(folder)) for folder in folders]
    if len({len(run.top1) for run in runs}) > 1:
        counts = ", ".join(f"{run.folder} {len(run.top1)}" for run in runs)
        raise ValueError(f"runs with as many exits can be compared, but these have other numbers: {counts}")
    if len({run.split for run in runs}) > 1:
        splits = ", ".join(f"{run.folder} {run.split}" for run in runs)
        raise ValueError(f"runs scored on one split can be compared, but these were on others: {splits}")
    without = [run for run in runs if not run.curve]
    costs = np.empty(0) if without else common_costs([run.curve for run in runs])
    missing = ""
    if without:
        missing = _missing(without[0]) + (f" ({len(without)} of {len(runs)} runs)" if len(without) > 1 else "")
    elif not len(costs):
        missing = "the budgeted curves of these runs share no cost"
    found = tuple(groups(runs))
    shots = common_shots(runs)
    return Comparison(found, costs, missing, tuple(difference(group, found[0], costs, shots) for group in found[1:]))


def common_shots(runs: Sequence[Run]) -> tuple[str, ...]:
    """Of many, medium and few those that every run has classes of; none where that is one alone, as in a set whose
    classes are of one size."""
    common = tuple(name for name in runs[0].shots if all(name in run.shots for run in runs))
    return common if len(common) > 1 else ()


def difference(ours: Group, theirs: Group, costs: np.ndarray, shots: Sequence[str] = ()) -> Difference:
    """`ours` minus `theirs`; no interval where a seed comes twice in one of them."""
    paired = ours.seeds == theirs.seeds
    repeated = ours.repeated or theirs.repeated

    def of(value: Callable[[Run], float]) -> Estimate:
        found = of_difference(ours.values(value), theirs.values(value), paired)
        return replace(found, margin=None) if repeated else found

    exits = range(len(ours.mean))
    return Difference(
        ours,
        theirs,
        paired,
        tuple(of(_exit(k)) for k in exits),
        of(_over(costs)) if len(costs) else None,
        {name: tuple(of(_shot(name, k)) for k in exits) for name in shots},
    )


def _missing(run: Run) -> str:
    if run.mul_adds:  # it was evaluated
        return f"{run.folder} has no budgeted figures: it holds no images out of training (data.heldout is 0)"
    return f"{run.folder} has no budgeted figures; earlybird evaluate {run.folder} makes them"


def _exit(k: int) -> Callable[[Run], float]:
    return lambda run: run.top1[k]


def _shot(name: str, k: int) -> Callable[[Run], float]:
    return lambda run: run.shots[name][k]


def _spread(values: Sequence[Sequence[float]]) -> list[float] | None:
    """[K] over runs' [K]; None of a single run."""
    return [float(value) for value in np.std(values, axis=0, ddof=1)] if len(values) > 1 else None


def _point(points: Mapping[Path, np.ndarray], i: int) -> Callable[[Run], float]:
    return lambda run: float(points[run.folder][i])


def _over(costs: np.ndarray) -> Callable[[Run], float]:
    return lambda run: float(np.mean(top1_at(run.curve, costs)))


def write_page(found: Comparison, page: Path) -> Path:
    """Write the comparison as `page` (and its figures beside it, as PNG); the page's path."""
    accuracy, learning = accuracy_over_cost(found), learning_curves(found)
    budgeted = " and over budgets" if len(found.costs) else ""
    text = TEMPLATES.get_template("comparison.html").render(
        found=found,
        exits=[group.exits() for group in found.groups],
        budgeted=[group.budgeted(found.costs) for group in found.groups] if len(found.costs) else [],
        num_exits=len(found.groups[0].mean),
        sizes=SIZES,
        commands=[(run.folder.name, command(run.config)) for group in found.groups for run in group.runs],
        figures=[
            (embedded(accuracy), f"Top-1 of every exit over what it costs{budgeted}"),
            (embedded(learning), "Accuracy of the first and the last exit over epochs"),
        ],
    )
    page.parent.mkdir(parents=True, exist_ok=True)
    temporary = page.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    write_png(accuracy, page.with_name(f"{page.stem}-anytime.png"))
    write_png(learning, page.with_name(f"{page.stem}-learning.png"))
    return temporary.replace(page)


def read_groups(folders: Sequence[Path]) -> list[Group]:
    """The evaluated runs in `folders`, by their settings; ValueError as `compare` raises it of one."""
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
    curve = tuple((float(row["mul_adds"]), float(row["top1"])) for row in evaluation.get("budgeted", []))
    known = trained_on(folder, rows, evaluation)
    shots = {str(row["group"]): tuple(row["top1"]) for row in evaluation.get("shots", [])}
    return Run(folder, config, top1, str(evaluation["split"]), tuple(evaluation["mul_adds"]), curve, rows, known, shots)
