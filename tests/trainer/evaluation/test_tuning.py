"""Ratios are compared over costs that every run's curve covers."""

from __future__ import annotations

from pathlib import Path

import pytest

from trainer.evaluation.tuning import Heldout, best, candidates


def heldout(ratio: float, *curve: tuple[float, float]) -> Heldout:
    return Heldout(Path(f"q-{ratio}"), 10, ratio, 100, (1.0, 5.0), curve, (50.0, 60.0), ())


def test_scores_are_means_over_the_common_costs() -> None:
    runs = [heldout(0.5, (1.0, 50.0), (3.0, 70.0)), heldout(1.0, (2.0, 61.0), (5.0, 61.0))]
    low, high = candidates(runs)
    assert (low.costs[0], low.costs[-1]) == (2.0, 3.0)
    assert (low.score, high.score) == (pytest.approx(65.0), pytest.approx(61.0))
    assert best([low, high]).ratio == 0.5


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ValueError, match="share no cost"):
        candidates([heldout(0.5, (1.0, 50.0), (2.0, 60.0)), heldout(1.0, (3.0, 50.0), (5.0, 60.0))])
