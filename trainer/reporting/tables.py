"""The published tables by name, the runs that each needs, and ours beside theirs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import Config, resolve
from trainer.reporting.comparison import Group, read_groups
from trainer.reporting.provenance import FREE
from trainer.reporting.published import (
    ACCURACY,
    BASELINE,
    LABEL_SMOOTHING,
    WEIGHT_NET_ABLATION,
    PublishedAccuracy,
)
from trainer.settings import nearest, setting_names

COST = "cost"


@dataclass(frozen=True)
class TableRow:
    """One row of an accuracy table: what trains it, and what was published of it."""

    name: str
    recipe: str
    settings: tuple[str, ...]
    published: PublishedAccuracy

    @property
    def config(self) -> Config:
        return resolve(self.recipe, list(self.settings))


def _tables() -> dict[str, tuple[TableRow, ...]]:
    imagenet = [TableRow(name, name, (), found) for name, found in ACCURACY.items() if name.startswith("imagenet")]
    smoothed = [
        TableRow(name, name, ("optim.label_smoothing=0.1", f"run.epochs={found.epochs}"), found)
        for name, found in LABEL_SMOOTHING.items()
    ]
    cifar = "cifar100-msdnet-5exits"
    ablation = [TableRow("baseline", cifar + BASELINE, (), ACCURACY[cifar + BASELINE])]
    ablation += [
        TableRow(f"{depth}x{width}", cifar, (f"weight_net.depth={depth}", f"weight_net.width={width}"), found)
        for (depth, width), found in WEIGHT_NET_ABLATION.items()
    ]
    return {
        "imagenet": tuple(imagenet),
        "imagenet-label-smoothing": tuple(smoothed),
        "weight-net": tuple(ablation),
    }


def table_names() -> list[str]:
    return [COST, *_tables()]


def accuracy_rows(name: str) -> tuple[TableRow, ...]:
    """The rows of an accuracy table; ValueError with the nearest name where there is none."""
    found = _tables()
    if name not in found:
        raise ValueError(f"unknown table {name!r}{nearest(name, table_names())}; there are {', '.join(table_names())}")
    return found[name]


def accuracy_table(name: str, runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Each row of a table beside those of `runs` that are of it: top-1 by exit, mean and spread over seeds, published,
    difference; `differs` names the settings in which they are not what the row asks for.

    Raises ValueError for a run that is of no row, was not evaluated, or has other exits.
    """
    rows, groups = accuracy_rows(name), read_groups(runs) if runs else []
    for group in groups:
        if not any(_is_of(row, group.runs[0].config) for row in rows):
            raise ValueError(
                f"{group.runs[0].folder} ({group.runs[0].config.recipe}) is of no row of table {name}; its rows are "
                f"{', '.join(row.name for row in rows)}"
            )
    return [_beside(row, [group for group in groups if _is_of(row, group.runs[0].config)]) for row in rows]


def _is_of(row: TableRow, config: Config) -> bool:
    """Whether a run is meant by the row: its recipe, and what the tables tell rows apart by."""
    ours, theirs = setting_names(config), setting_names(row.config)
    told_apart = ["recipe", "optim.label_smoothing"]
    told_apart += ["weight_net.depth", "weight_net.width"] if config.sample_weights.enabled else []
    return all(ours[name] == theirs[name] for name in told_apart)


def _beside(row: TableRow, found: Sequence[Group]) -> dict[str, Any]:
    result: dict[str, Any] = {
        "name": row.name,
        "recipe": row.recipe,
        "settings": list(row.settings),
        "published": list(row.published.top1),
        "epochs": row.published.epochs,
        "runs": [],
        "top1": None,
        "spread": None,
        "difference": None,
        "differs": {},
    }
    if not found:
        return result
    if len(found) > 1:
        folders = ", ".join(str(group.runs[0].folder) for group in found)
        raise ValueError(f"runs of row {row.name} have other settings than one another ({folders}); give those of one")
    group = found[0]
    if len(group.mean) != len(row.published.top1):
        raise ValueError(
            f"{group.runs[0].folder} has {len(group.mean)} exits, row {row.name} {len(row.published.top1)}: another net"
        )
    ours, theirs = setting_names(group.runs[0].config), setting_names(row.config)
    return result | {
        "runs": [str(run.folder) for run in group.runs],
        "top1": group.mean,
        "spread": group.spread,
        "difference": [mine - printed for mine, printed in zip(group.mean, row.published.top1, strict=True)],
        "differs": {
            name: [value, theirs.get(name)]
            for name, value in ours.items()
            if value != theirs.get(name) and name not in ("seed", "data.source") and not name.startswith(FREE)
        },
    }
