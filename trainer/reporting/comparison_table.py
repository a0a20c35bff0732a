"""A comparison of runs as tables for a terminal, and as plain values for programs."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from trainer.reporting.comparison import Comparison, Difference
from trainer.reporting.estimate import Estimate


def comparison_values(found: Comparison) -> dict[str, Any]:
    """`rows`, a group each; `differences` of the other groups from the first; `costs`, what `budgeted` is over.

    A row's `spread` is the standard deviation over seeds, and `interval` the 95 % confidence interval of each mean:
    null where runs are too few. `budgeted` is null where not every run has such figures or no cost is common.
    """
    return {
        "rows": [
            {
                "name": group.name,
                "runs": [str(run.folder) for run in group.runs],
                "top1": group.mean,
                "spread": group.spread,
                "interval": _intervals(group.exits()),
                "budgeted": _value(group.budgeted(found.costs)) if len(found.costs) else None,
            }
            for group in found.groups
        ],
        "differences": [
            {
                "name": row.ours.name,
                "minus": row.theirs.name,
                "paired": row.paired,
                "exits": [_difference(estimate) for estimate in row.exits],
                "budgeted": _difference(row.budgeted) if row.budgeted is not None else None,
            }
            for row in found.differences
        ],
        "costs": [float(found.costs[0]), float(found.costs[-1])] if len(found.costs) else None,
    }


def comparison_tables(found: Comparison) -> list[Table]:
    """Every group's means, then the differences from the first group, if there is another one."""
    names = [f"exit {k}" for k in range(1, len(found.groups[0].mean) + 1)]
    names += ["budgeted"] if len(found.costs) else []
    shown = Table("", "runs", *names, title=f"Top-1 %, {found.split}", title_justify="left")
    for group in found.groups:
        spreads = [""] * len(group.mean) if group.spread is None else [f" ± {spread:.2f}" for spread in group.spread]
        cells = [
            f"{exit_.mean:.2f}{spread}{_bracket(exit_, '.2f')}"
            for exit_, spread in zip(group.exits(), spreads, strict=True)
        ]
        if len(found.costs):
            budgeted = group.budgeted(found.costs)
            cells.append(f"{budgeted.mean:.2f}{_bracket(budgeted, '.2f')}")
        _add(shown, group.name, str(len(group.runs)), *cells)
    tables = [shown]
    if found.differences:
        title = Text(f"Minus {found.groups[0].name}, percentage points")
        tables.append(Table("", "runs", *names, title=title, title_justify="left"))
    for row in found.differences:
        every = (*row.exits, *([row.budgeted] if row.budgeted is not None else []))
        _add(tables[1], row.ours.name, _runs(row), *map(_told, every))
    return tables


def comparison_note(found: Comparison) -> str:
    """What the signs in the tables mean, in lines."""
    lines = ["±: standard deviation over seeds; [ , ]: 95 % confidence interval of the mean, or of the difference."]
    if found.differences:
        lines.append("Within chance: the interval holds 0, so these runs do not tell which one is better.")
    if any(row.exits[0].margin is None for row in found.differences):
        lines.append("No interval: of a single run, and of runs that share a seed.")
    if len(found.costs):
        lines.append(f"Budgeted: mean of the budgeted curve over {found.reach}, the costs that every run reaches.")
    else:
        lines.append(f"No budgeted figures: {found.missing}.")
    return "\n".join(lines)


def _add(table: Table, *cells: str) -> None:
    """As they are: rich would take brackets for markup."""
    table.add_row(*map(Text, cells))


def _runs(row: Difference) -> str:
    ours, theirs = len(row.ours.runs), len(row.theirs.runs)
    return f"{ours} {'pair' if ours == 1 else 'pairs'}" if row.paired else f"{ours} and {theirs}"


def _told(estimate: Estimate) -> str:
    end = {None: "\nno interval", True: "\nwithin chance", False: ""}[estimate.within_chance]
    return f"{estimate.mean:+.2f}{_bracket(estimate, '+.2f')}{end}"


def _bracket(estimate: Estimate, form: str) -> str:
    if estimate.interval is None:
        return ""
    low, high = estimate.interval
    return f"\n[{low:{form}}, {high:{form}}]"


def _intervals(estimates: list[Estimate]) -> list[list[float]] | None:
    found = [list(estimate.interval) for estimate in estimates if estimate.interval is not None]
    return found or None


def _value(estimate: Estimate) -> dict[str, Any]:
    return {"top1": estimate.mean, "interval": _ends(estimate)}


def _difference(estimate: Estimate) -> dict[str, Any]:
    return {"difference": estimate.mean, "interval": _ends(estimate), "within_chance": estimate.within_chance}


def _ends(estimate: Estimate) -> list[float] | None:
    return None if estimate.interval is None else list(estimate.interval)
