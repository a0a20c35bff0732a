"""A comparison of runs as tables for a terminal, and as plain values for programs."""

from __future__ import annotations

from typing import Any

from rich.table import Table
from rich.text import Text

from trainer.evaluation.per_class import SIZES
from trainer.reporting.comparison import Comparison, Difference, Group
from trainer.reporting.estimate import Estimate


def comparison_values(found: Comparison) -> dict[str, Any]:
    """`rows`, a group each; `differences` of the other groups from the first; `costs`, what `budgeted` is over.

    A row's `spread` is the standard deviation over seeds, and `interval` the 95 % confidence interval of each mean:
    null where runs are too few. `budgeted` is null where not every run has such figures or no cost is common, `shots`
    (by class size: many, medium, few) where not every run has them.
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
                "shots": {name: _shot(group, name) for name in found.shots} or None,
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
                "shots": {name: [_difference(one) for one in row.shots[name]] for name in found.shots} or None,
            }
            for row in found.differences
        ],
        "costs": [float(found.costs[0]), float(found.costs[-1])] if len(found.costs) else None,
    }


def comparison_tables(found: Comparison) -> list[Table]:
    """Every group's means, then the differences from the first group, if there is another one, and both again by class
    size where every run has it; a line an exit, so that they fit a narrow terminal."""
    places = [f"exit {k}" for k in range(1, len(found.groups[0].mean) + 1)]
    costs = found.costs if len(found.costs) else None
    tables = _pair(
        found,
        "",
        places + (["budgeted"] if costs is not None else []),
        [
            (group.exits() + ([group.budgeted(costs)] if costs is not None else []), group.spread)
            for group in found.groups
        ],
        [[*row.exits, *([row.budgeted] if row.budgeted is not None else [])] for row in found.differences],
    )
    if not found.shots:
        return tables
    return tables + _pair(
        found,
        " by class size",
        [f"{name}, {place}" for name in found.shots for place in places],
        [
            (
                [one for name in found.shots for one in group.shot(name)],
                [one for name in found.shots for one in group.shot_spread(name) or ()],
            )
            for group in found.groups
        ],
        [[one for name in found.shots for one in row.shots[name]] for row in found.differences],
    )


def _pair(
    found: Comparison,
    what: str,
    places: list[str],
    means: list[tuple[list[Estimate], list[float] | None]],
    differences: list[list[Estimate]],
) -> list[Table]:
    """The means of every group with their spreads, and the differences, if there are any."""
    shown = _table(f"Top-1 %{what}, {found.split}", "", "", "mean ± spread", "95 % interval")
    for group, (estimates, spread) in zip(found.groups, means, strict=True):
        spreads = [f" ± {one:.2f}" for one in spread or ()]
        spreads += [""] * (len(estimates) - len(spreads))
        tops = [f"{one.mean:.2f}{spread}" for one, spread in zip(estimates, spreads, strict=True)]
        brackets = [_bracket(one, ".2f") for one in estimates]
        _add(shown, [group.name, _number(len(group.runs), "run")], places, tops, brackets)
    if not differences:
        return [shown]
    title = f"Minus {found.groups[0].name}{what}, percentage points"
    minus = _table(title, "", "", "difference", "95 % interval", "")
    for row, every in zip(found.differences, differences, strict=True):
        _add(
            minus,
            [row.ours.name, _runs(row)],
            places,
            [f"{one.mean:+.2f}" for one in every],
            [_bracket(one, "+.2f") for one in every],
            [{None: "no interval", True: "within chance", False: ""}[one.within_chance] for one in every],
        )
    return [shown, minus]


def comparison_note(found: Comparison) -> str:
    """What the signs in the tables mean, in lines."""
    lines = ["Spread: standard deviation over seeds. Interval: confidence interval of the mean, or of the difference."]
    if found.differences:
        lines.append("Within chance: the interval holds 0, so these runs do not tell which one is better.")
    if any(row.exits[0].margin is None for row in found.differences):
        lines.append("No interval: of a single run, and of runs that share a seed.")
    if len(found.costs):
        lines.append(f"Budgeted: mean of the budgeted curve over {found.reach}, the costs that every run reaches.")
    else:
        lines.append(f"No budgeted figures: {found.missing}.")
    if found.shots:
        sizes = ", ".join(SIZES[name] for name in found.shots)
        lines.append(f"Class size: training images, {sizes}; means over the classes of a size.")
    return "\n".join(lines)


def _table(title: str, *names: str) -> Table:
    table = Table(title=Text(title), title_justify="left", show_lines=True)
    for number, name in enumerate(names):
        table.add_column(name, no_wrap=number > 0, overflow="fold")
    return table


def _add(table: Table, *cells: list[str]) -> None:
    """One row of cells of several lines, as they are: rich would take brackets for markup."""
    table.add_row(*(Text("\n".join(lines)) for lines in cells))


def _runs(row: Difference) -> str:
    ours, theirs = len(row.ours.runs), len(row.theirs.runs)
    return _number(ours, "pair") if row.paired else f"{ours} and {theirs} runs"


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _bracket(estimate: Estimate, form: str) -> str:
    if estimate.interval is None:
        return ""
    low, high = estimate.interval
    return f"[{low:{form}}, {high:{form}}]"


def _intervals(estimates: list[Estimate]) -> list[list[float]] | None:
    found = [list(estimate.interval) for estimate in estimates if estimate.interval is not None]
    return found or None


def _shot(group: Group, name: str) -> dict[str, Any]:
    estimates = group.shot(name)
    means = [estimate.mean for estimate in estimates]
    return {"top1": means, "spread": group.shot_spread(name), "interval": _intervals(estimates)}


def _value(estimate: Estimate) -> dict[str, Any]:
    return {"top1": estimate.mean, "interval": _ends(estimate)}


def _difference(estimate: Estimate) -> dict[str, Any]:
    return {"difference": estimate.mean, "interval": _ends(estimate), "within_chance": estimate.within_chance}


def _ends(estimate: Estimate) -> list[float] | None:
    return None if estimate.interval is None else list(estimate.interval)
