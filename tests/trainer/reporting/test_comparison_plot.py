"""Figures of a comparison draw the numbers that its tables hold, and say what bars and bands are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from trainer.config import resolve
from trainer.reporting.comparison import Comparison, Group, Run
from trainer.reporting.comparison_plot import accuracy_over_cost, learning_curves

CURVE = ((1e6, 50.0), (2e6, 60.0))


def group(name: str, num_runs: int, mul_adds: tuple[float, ...] = (1e6, 2e6)) -> Group:
    rows = [{"event": "eval", "iteration": 5, "split": "val", "exits": [{"top1": 40.0}, {"top1": 50.0}]}]
    return Group(
        name,
        tuple(
            Run(
                Path(name, str(seed)),
                dataclasses.replace(resolve("demo", []), seed=seed),
                (50.0 + seed, 60.0 + 2 * seed),
                "val",
                mul_adds,
                tuple((cost, top1 + seed) for cost, top1 in CURVE),
                rows,
            )
            for seed in range(num_runs)
        ),
    )


def test_bars_and_bands_are_the_intervals() -> None:
    groups = (group("a", 3), group("b", 1))
    figure = accuracy_over_cost(Comparison(groups, np.linspace(1e6, 2e6, 5), "", ()))
    anytime, budgeted = figure.axes
    assert "bars: 95 % confidence interval" in anytime.get_title(loc="left")
    assert "band: 95 % confidence interval" in budgeted.get_title(loc="left")
    with_bars, without = anytime.containers
    assert (with_bars.has_yerr, without.has_yerr) == (True, False)
    drawn = with_bars.lines[2][0].get_segments()
    for place, (estimate, bar) in enumerate(zip(groups[0].exits(), drawn, strict=True)):
        assert tuple(bar[:, 1]) == pytest.approx(estimate.interval)
        assert tuple(bar[:, 0]) == (place + 1, place + 1)
    assert [line.get_ydata()[0] for line in budgeted.lines] == pytest.approx([51.0, 50.0])
    (band,) = budgeted.collections
    heights = band.get_paths()[0].vertices[:, 1]
    margin = 4.302653 / 3**0.5
    assert (heights.min(), heights.max()) == pytest.approx((51 - margin, 61 + margin), rel=1e-6)
    assert [text.get_text() for text in anytime.get_legend().get_texts()] == ["a (3 runs)", "b (1 run)"]


def test_single_runs_without_costs_are_points_over_exits() -> None:
    figure = accuracy_over_cost(Comparison((group("a", 1, ()),), np.empty(0), "none", ()))
    (anytime,) = figure.axes
    assert (anytime.get_title(loc="left"), anytime.get_xlabel()) == ("Anytime: every exit on every image", "exit")


def test_learning_curves_are_a_line_a_run() -> None:
    first, last = learning_curves(Comparison((group("a", 3), group("b", 2)), np.empty(0), "", ())).axes
    assert [len(axes.lines) for axes in (first, last)] == [5, 5]
    assert (first.lines[0].get_ydata()[0], last.lines[0].get_ydata()[0]) == (40.0, 50.0)
