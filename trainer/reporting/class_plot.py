"""The figure of a long-tailed set: accuracy and training images, class by class."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from trainer.reporting.plots import GRID, INK, OURS, Row, dress, exit_colours

MOST_NAMES = 12  # of more classes the names would overlap


def class_figure(rows: Sequence[Row]) -> Figure:
    """Top-1 of the first and the last exit over the classes as given, largest first, above their training images.

    rows  of evaluation.per_class
    """
    figure = Figure(figsize=(11.0, 4.6), layout="constrained")
    accuracy, images = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    places, num_exits = range(1, len(rows) + 1), len(rows[0]["top1"])
    dress(accuracy, "Every class, that with the most training images first", "", "top-1, %")
    colours = exit_colours(num_exits)
    for exit_number in dict.fromkeys((1, num_exits)):
        top1 = [row["top1"][exit_number - 1] for row in rows]
        accuracy.plot(places, top1, marker=".", lw=1.2, color=colours[exit_number - 1], label=f"exit {exit_number}")
    accuracy.legend(frameon=False, loc="best")
    dress(images, "", "class", "training images")
    images.bar(places, [row["num_train"] for row in rows], width=1.0, color=OURS, edgecolor=GRID, lw=0.3)
    images.set_yscale("log")
    images.tick_params(colors=INK)
    if len(rows) <= MOST_NAMES:
        images.set_xticks(places, [row["name"] for row in rows])
    return figure
