"""Accuracy over cost on the held-out images, a curve a ratio."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from trainer.evaluation.tuning import Candidate
from trainer.reporting.comparison_plot import COLOURS
from trainer.reporting.plots import dress, mul_add_unit


def tune_figure(found: Sequence[Candidate], chosen: Candidate, title: str) -> Figure:
    """The chosen ratio's curve is drawn thicker."""
    scale, unit = mul_add_unit(chosen.costs)
    figure = Figure(figsize=(8.0, 4.8), layout="constrained")
    axes = figure.subplots()
    dress(axes, title, f"expected Mul-Adds per image, {unit}", "held-out top-1, %")
    for number, candidate in enumerate(found):
        axes.plot(
            [cost / scale for cost in candidate.costs],
            candidate.curve,
            color=COLOURS[number % len(COLOURS)],
            lw=3.0 if candidate is chosen else 1.4,
            label=f"q {candidate.ratio:g}: {candidate.score:.2f}{', chosen' if candidate is chosen else ''}",
        )
    axes.legend(frameon=False, loc="lower right")
    return figure
