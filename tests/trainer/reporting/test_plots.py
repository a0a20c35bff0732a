from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.reporting.plots import (
    MOST_POINTS,
    Series,
    accuracy_figure,
    mul_add_unit,
    svg,
    thinned,
    training_figure,
    write_png,
)

ANYTIME = [{"exit": k, "top1": 50.0 + k, "top5": 80.0, "loss": 1.0, "num_images": 10} for k in (1, 2, 3)]
BUDGETED = [{"ratio": q, "top1": 50 + q, "mul_adds": 1e7 * (1 + q)} for q in (1.95, 0.05, 1.0)]
COSTS = [1e7, 2e7, 3e7]


def _train(iteration: int, **changes: Any) -> dict[str, Any]:
    return {
        "event": "train", "iteration": iteration, "epoch": iteration / 10, "loss": [1.0, 0.5], "top1": [0.5, 0.6],
        "images_per_second": 100.0, "learning_rate": 0.1, "weight_quantiles": [[0.8, 1, 1.2]] * 2,
        "weight_easy": [0.9, 1.0], "weight_hard": [1.1, 1.0], **changes,
    }  # fmt: skip


def test_curves_show_what_was_measured_and_published() -> None:
    published = [Series("published", [60.0, 61.0, 62.0]), Series("another net", [1.0, 2.0])]
    figure = accuracy_figure(ANYTIME, BUDGETED, COSTS, published, "demo")
    left, right = figure.axes
    lines = {line.get_label(): np.asarray(line.get_xydata()).tolist() for line in left.lines}
    assert lines["this run"] == [[10, 51], [20, 52], [30, 53]]
    assert lines["published"] == [[10, 60], [20, 61], [30, 62]]
    assert "another net" not in lines, "other exits than this net's have no place on its costs"
    assert np.asarray(right.lines[0].get_xdata()).tolist() == pytest.approx([10.5, 20, 29.5]), "sorted by cost, in M"
    assert [axes.get_xlabel() for axes in figure.axes] == ["Mul-Adds per image, M", "expected Mul-Adds per image, M"]


def test_without_a_budgeted_curve_there_is_one_picture() -> None:
    assert len(accuracy_figure(ANYTIME, [], COSTS).axes) == 1


def test_units_follow_the_largest_cost() -> None:
    assert mul_add_unit([3e8, 1.3e9]) == (1e9, "G")
    assert mul_add_unit([7e6, 6e7]) == (1e6, "M")


def test_training_curves_need_no_weights_and_survive_gaps(tmp_path: Path) -> None:
    assert training_figure([{"event": "start", "iteration": 0}]) is None
    rows = [_train(i, weight_quantiles=None) for i in (10, 20)] + [_train(30, loss=[None, None], weight_quantiles=None)]
    rows.append({"event": "eval", "iteration": 20, "split": "val", "exits": ANYTIME[:2]})
    plain = training_figure(rows)
    weighted = training_figure([_train(i) for i in (10, 20)])
    assert plain is not None
    assert weighted is not None
    assert (len(plain.axes), len(weighted.axes)) == (4, 6)
    dots = next(line for line in plain.axes[0].lines if line.get_marker() == "o")
    assert np.asarray(dots.get_xydata()).tolist() == [[2.0, 1.0]]
    write_png(plain, tmp_path / "training.png")
    assert [path.name for path in tmp_path.iterdir()] == ["training.png"]
    assert (tmp_path / "training.png").read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in svg(plain)


def test_long_runs_are_thinned_but_keep_their_end() -> None:
    rows = [_train(i) for i in range(1, 10_001)]
    kept = thinned(rows)
    assert len(kept) <= MOST_POINTS
    assert kept[-1]["iteration"] == 10_000
    assert thinned(rows[:5]) == rows[:5]
