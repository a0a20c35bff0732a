"""A published table with our runs beside its rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.reporting.comparison import Group, read_groups
from trainer.reporting.published_tables import TableRow, accuracy_rows, fits, is_of, otherwise


def accuracy_table(name: str, runs: Sequence[Path]) -> list[dict[str, Any]]:
    """Each row of a table beside those of `runs` that are of it: top-1 by exit, mean and spread over seeds, published;
    `differs` names in what they are not what the row publishes, and `difference` is null where that is the net or the
    number of classes.

    Raises ValueError for a run that is of no row, was not evaluated, or has other exits, and for runs of one row that
    differ in more than the seed.
    """
    rows, groups = accuracy_rows(name), read_groups(runs) if runs else []
    for group in groups:
        if not any(is_of(row, group.runs[0].config) for row in rows):
            raise ValueError(
                f"{group.runs[0].folder} ({group.runs[0].config.recipe}) is of no row of table {name}; its rows are "
                f"{', '.join(row.name for row in rows)}"
            )
    return [_beside(row, [group for group in groups if is_of(row, group.runs[0].config)]) for row in rows]


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
    group, first = found[0], found[0].runs[0]
    for run in group.runs:
        if run.trained_on != first.trained_on or run.split != first.split:
            raise ValueError(
                f"{first.folder} and {run.folder}, of row {row.name}, had other images than one another; give those of "
                f"one set and split"
            )
    if len(group.mean) != len(row.published.top1):
        raise ValueError(
            f"{first.folder} has {len(group.mean)} exits, row {row.name} {len(row.published.top1)}: another net"
        )
    comparable = fits(row, first.config, first.trained_on)
    pairs = zip(group.mean, row.published.top1, strict=True)
    return result | {
        "runs": [str(run.folder) for run in group.runs],
        "top1": group.mean,
        "spread": group.spread,
        "difference": [mine - printed for mine, printed in pairs] if comparable else None,
        "differs": otherwise(row, first.config, first.trained_on, first.split),
    }
