"""Curves are read off at costs that all of them cover, and never beyond."""

from __future__ import annotations

import numpy as np

from trainer.evaluation.cost_curve import common_costs, top1_at


def test_common_costs_are_the_narrowest_range() -> None:
    costs = common_costs([[(4.0, 70.0), (1.0, 50.0)], [(2.0, 55.0), (9.0, 80.0)]])
    assert (len(costs), costs[0], costs[-1]) == (100, 2.0, 4.0)
    assert len(common_costs([[(1.0, 50.0), (2.0, 60.0)], [(3.0, 50.0), (4.0, 60.0)]])) == 0
    assert set(common_costs([[(1.0, 50.0), (2.0, 60.0)], [(2.0, 50.0), (4.0, 60.0)]])) == {2.0}, "one cost is a range"


def test_between_points_linear_and_of_one_cost_the_mean() -> None:
    curve = [(3.0, 70.0), (1.0, 40.0), (1.0, 60.0)]
    np.testing.assert_allclose(top1_at(curve, np.array([1.0, 1.5, 3.0])), [50.0, 55.0, 70.0])
