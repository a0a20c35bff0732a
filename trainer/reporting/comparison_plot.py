"""Figures of several runs: accuracy over cost with its confidence intervals, and how training went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from trainer.reporting.estimate import Estimate
from trainer.reporting.plots import INK, dress, mul_add_unit

if TYPE_CHECKING:
    from trainer.reporting.comparison import Comparison

COLOURS = ("#1f4e79", "#d1495b", "#2a9d5c", "#8a5fbf", "#c98a1b", "#5b6b7a")


def accuracy_over_cost(found: Comparison) -> Figure:
    """Anytime beside budgeted batch; the latter is left out where the runs have no cost in common.

    A single run has no interval, and so neither bar nor band."""
    budgeted = bool(len(found.costs))
    figure = Figure(figsize=(12.0 if budgeted else 11.0, 5.0), layout="constrained")
    axes = figure.subplots(1, 2 if budgeted else 1, squeeze=False)[0]
    _anytime(axes[0], found)
    axes[0].legend(frameon=False, loc="best")
    if budgeted:
        _budgeted(axes[1], found)
        axes[1].sharey(axes[0])
        axes[0].autoscale_view()
    return figure


def learning_curves(found: Comparison) -> Figure:
    """Validation accuracy over iterations, a line a run."""
    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    for axes, (place, name) in zip(figure.subplots(1, 2, sharey=True), ((0, "first"), (-1, "last")), strict=True):
        dress(axes, f"Validation, {name} exit", "iteration", "top-1, %" if place == 0 else "")
        for number, group in enumerate(found.groups):
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


def _anytime(axes: Axes, found: Comparison) -> None:
    """Over multiply-adds where they are known of all, else over the exits' numbers."""
    places = [group.runs[0].mul_adds for group in found.groups]
    scale, name = 1.0, "exit"
    if all(places):
        scale, unit = mul_add_unit([cost for costs in places for cost in costs])
        name = f"Mul-Adds per image, {unit}"
    else:
        places = [tuple(range(1, len(group.mean) + 1)) for group in found.groups]
    scores = [group.exits() for group in found.groups]
    dress(axes, f"Anytime: every exit on every image{_said('bars', scores)}", name, "top-1 accuracy, %")
    for number, (group, costs, exits) in enumerate(zip(found.groups, places, scores, strict=True)):
        axes.errorbar(
            [cost / scale for cost in costs],
            [exit_.mean for exit_ in exits],
            yerr=[exit_.margin or 0.0 for exit_ in exits] if exits[0].margin is not None else None,
            color=COLOURS[number % len(COLOURS)],
            marker="o",
            ms=6,
            lw=2,
            capsize=4,
            label=f"{group.name} ({len(group.runs)} {'run' if len(group.runs) == 1 else 'runs'})",
        )


def _budgeted(axes: Axes, found: Comparison) -> None:
    """Over the costs that every run reaches."""
    scale, unit = mul_add_unit(list(found.costs))
    curves = [group.curve(found.costs) for group in found.groups]
    title = f"Budgeted batch: each image leaves when sure{_said('band', curves)}"
    dress(axes, title, f"expected Mul-Adds per image, {unit}", "")
    for number, curve in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        axes.plot(found.costs / scale, [point.mean for point in curve], color=colour, lw=2)
        ends = [point.interval for point in curve if point.interval is not None]
        if ends:
            low, high = zip(*ends, strict=True)
            axes.fill_between(found.costs / scale, low, high, color=colour, alpha=0.18, lw=0)


def _said(mark: str, groups: Sequence[Sequence[Estimate]]) -> str:
    """A title's second line: what the mark is, where any group has an interval."""
    if not any(group[0].margin is not None for group in groups):
        return ""
    return f"\nmean of the runs; {mark}: 95 % confidence interval of the mean"
