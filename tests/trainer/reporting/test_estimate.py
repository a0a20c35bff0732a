"""Intervals as computed by hand, and by scipy's own tests."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from trainer.reporting.estimate import Estimate, of_difference, of_mean

VALUES = st.lists(st.integers(0, 10_000).map(lambda hits: hits / 100), min_size=2, max_size=8)


def test_the_mean_by_hand() -> None:
    # deviations -1.5 -0.5 0.5 1.5: variance 5 / 3; t(0.975, 3) = 3.182446
    found = of_mean([1.0, 2.0, 3.0, 4.0])
    assert found.mean == 2.5
    assert found.margin == pytest.approx(3.182446 * math.sqrt(5 / 3 / 4), rel=1e-6)
    assert found.interval == pytest.approx((0.445739, 4.554261), abs=1e-6)
    assert of_mean([7.0]) == Estimate(7.0, None)
    assert of_mean([7.0, 7.0]) == Estimate(7.0, 0.0)


def test_the_difference_of_pairs_by_hand() -> None:
    # 2 3 5: mean 10 / 3, variance 7 / 3; t(0.975, 2) = 4.302653. The same values unpaired tell nothing.
    found = of_difference([3.0, 5.0, 8.0], [1.0, 2.0, 3.0], paired=True)
    assert found.mean == pytest.approx(10 / 3)
    assert found.margin == pytest.approx(4.302653 * math.sqrt(7 / 9), rel=1e-6)
    assert of_difference([11.0, 22.0, 33.0], [10.0, 21.1, 32.0], paired=True).within_chance is False
    assert of_difference([11.0, 22.0, 33.0], [10.0, 21.1, 32.0], paired=False).within_chance is True
    assert of_difference([3.0], [1.0], paired=True) == Estimate(2.0, None)
    with pytest.raises(ValueError, match="1 values cannot be paired with 2"):
        of_difference([3.0], [1.0, 2.0], paired=True)


def test_welchs_difference_by_hand() -> None:
    # variances of the means 1 / 3 and 5 / 3; freedom 4 / (1 / 18 + 25 / 27) = 216 / 53; t(0.975, 216 / 53) = 2.756285
    found = of_difference([1.0, 2.0, 3.0], [2.0, 4.0, 6.0, 8.0], paired=False)
    assert found.mean == -3.0
    assert found.margin == pytest.approx(2.756285 * math.sqrt(2), rel=1e-6)
    assert of_difference([1.0], [2.0, 4.0], paired=False) == Estimate(-2.0, None)


@pytest.mark.parametrize(("mean", "margin", "told"), [(0.5, 0.4, False), (-0.3, 0.4, True), (0.0, 0.0, True)])
def test_within_chance_where_the_interval_holds_0(mean: float, margin: float, told: bool) -> None:
    assert Estimate(mean, margin).within_chance is told
    assert Estimate(mean, None).within_chance is None
    assert Estimate(mean, None).interval is None


@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 10_000)), min_size=2, max_size=8), VALUES)
def test_as_scipy_computes_them(pairs: list[tuple[int, int]], others: list[float]) -> None:
    ours, theirs = ([hits / 100 for hits in side] for side in zip(*pairs, strict=True))
    differing = {round(mine - other, 6) for mine, other in zip(ours, theirs, strict=True)}
    if len(differing) > 1:  # scipy warns of the others
        expected = stats.ttest_rel(ours, theirs).confidence_interval(0.95)
        assert of_difference(ours, theirs, paired=True).interval == pytest.approx(tuple(expected), abs=1e-8)
    if len(set(ours)) > 1 and len(set(others)) > 1:
        expected = stats.ttest_ind(ours, others, equal_var=False).confidence_interval(0.95)
        assert of_difference(ours, others, paired=False).interval == pytest.approx(tuple(expected), abs=1e-8)


@given(VALUES, st.floats(-50.0, 50.0), st.booleans())
def test_a_constant_moves_the_mean_alone(values: list[float], more: float, paired: bool) -> None:
    theirs = [value / 2 + 3.0 for value in values[::-1]]
    before = of_difference(values, theirs, paired)
    after = of_difference([value + more for value in values], theirs, paired)
    assert after.mean == pytest.approx(before.mean + more, abs=1e-9)
    assert after.margin == pytest.approx(before.margin, abs=1e-8)
    back = of_difference(theirs, values, paired)
    assert (back.mean, back.margin) == (pytest.approx(-before.mean), pytest.approx(before.margin, abs=1e-9))
