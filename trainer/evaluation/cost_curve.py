"""Accuracy over cost: curves of several runs, read off at the same costs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Curve = Sequence[tuple[float, float]]  # (multiply-adds per image, top-1 in percent), in any order

_NUM_COSTS = 100


def common_costs(curves: Sequence[Curve]) -> np.ndarray:
    """[100] costs evenly over the range that every curve covers; [0] where there is none."""
    lowest = max(min(cost for cost, _ in curve) for curve in curves)
    highest = min(max(cost for cost, _ in curve) for curve in curves)
    return np.linspace(lowest, highest, _NUM_COSTS) if lowest <= highest else np.empty(0)


def top1_at(curve: Curve, costs: np.ndarray) -> np.ndarray:
    """Top-1 at `costs`, which lie in the curve's range, between its points; of points with one cost their mean."""
    where = sorted({cost for cost, _ in curve})
    means = [float(np.mean([top1 for cost, top1 in curve if cost == place])) for place in where]
    return np.interp(costs, where, means)
