"""Figures of a run: accuracy over cost, and how training went. Drawn without a display and without global state."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Row = Mapping[str, Any]

OURS, PUBLISHED, PUBLISHED_BASELINE = "#1f4e79", "#d1495b", "#9a9a9a"
INK, GRID = "#333333", "#e3e3e3"
MOST_POINTS = (
    600  # a curve of a long run is thinned to so many points: more cannot be seen and only make the file large
)


@dataclass(frozen=True)
class Series:
    """Published top-1 of every exit, percent, with the name it goes by in a legend."""

    name: str
    top1: Sequence[float]


def accuracy_figure(
    anytime: Sequence[Row],
    budgeted: Sequence[Row],
    mul_adds: Sequence[float],
    published: Sequence[Series] = (),
    title: str = "",
) -> Figure:
    """Both curves of METHOD.md section 6, side by side; the second is left out where `budgeted` is empty.

    anytime  rows of evaluation.anytime; budgeted  rows of evaluation.budgeted; mul_adds  [K] per image of each exit
    published  drawn at this net's own costs, and only where it has as many exits
    """
    scale, unit = mul_add_unit(mul_adds)
    figure = Figure(figsize=(11.0 if budgeted else 6.2, 4.6), layout="constrained")
    axes = figure.subplots(1, 2 if budgeted else 1, squeeze=False)[0]
    costs = [cost / scale for cost in mul_adds]

    left = axes[0]
    dress(left, "Anytime: every exit on every image", f"Mul-Adds per image, {unit}", "top-1 accuracy, %")
    for series, colour, marker in zip(published, (PUBLISHED, PUBLISHED_BASELINE), "sD", strict=False):
        if len(series.top1) == len(costs):
            left.plot(costs, series.top1, marker=marker, ms=5, lw=1.2, ls="--", color=colour, label=series.name)
    left.plot(costs, [row["top1"] for row in anytime], marker="o", ms=7, lw=2.2, color=OURS, label="this run")
    for row, cost in zip(anytime, costs, strict=True):
        left.annotate(
            str(row["exit"]), (cost, row["top1"]), (0, 9), textcoords="offset points", ha="center", color=OURS, size=9
        )
    left.margins(y=0.1)  # room for the numbers of the exits
    left.legend(frameon=False, loc="best")

    if budgeted:
        right = axes[1]
        dress(right, "Budgeted batch: each image leaves when sure", f"expected Mul-Adds per image, {unit}", "")
        right.plot(
            *_over_cost(budgeted, scale), marker=".", ms=7, lw=2.2, color=OURS, label=f"{len(budgeted)} exit ratios"
        )
        right.plot(
            costs, [row["top1"] for row in anytime], "o", ms=6, mfc="white", color=OURS, label="anytime, this run"
        )
        right.legend(frameon=False, loc="best")
        right.sharey(left)
        left.autoscale_view()
    if title:
        figure.suptitle(title, x=0.01, ha="left", weight="bold", color=INK)
    return figure


def training_figure(rows: Sequence[Row]) -> Figure | None:
    """Loss, accuracy, sample weights, speed and learning rate over epochs, from the log's rows; None without any.

    A dotted line in the speed is a restart."""
    train = thinned([row for row in rows if row["event"] == "train"])
    if not train:
        return None
    val = [row for row in rows if row["event"] == "eval" and row["split"] == "val"]
    weighted = [row for row in train if row.get("weight_quantiles")]
    figure = Figure(figsize=(11.0, 10.2 if weighted else 7.0), layout="constrained")
    axes = figure.subplots(3 if weighted else 2, 2)
    epochs = [row["epoch"] for row in train]
    at = _epoch_of(train)
    colours = exit_colours(len(train[0]["loss"]))

    dress(axes[0][0], "Loss (line: training, dots: validation)", "", "cross-entropy, nats")
    dress(axes[0][1], "Accuracy (line: training, dots: validation)", "", "top-1, %")
    for k, colour in enumerate(colours):
        axes[0][0].plot(epochs, [_number(row["loss"][k]) for row in train], color=colour, lw=1.3, label=f"exit {k + 1}")
        axes[0][1].plot(epochs, [100 * row["top1"][k] for row in train], color=colour, lw=1.3)
        for axis, key in ((axes[0][0], "loss"), (axes[0][1], "top1")):
            dots = [_number(row["exits"][k][key]) for row in val]
            axis.plot([at(row["iteration"]) for row in val], dots, "o", ms=4.5, color=colour, mec="white", mew=0.6)
    axes[0][0].legend(frameon=False, ncols=2 if len(colours) > 4 else 1)

    if weighted:
        _weights(axes[1], weighted, colours)
    speed, rate = axes[-1]
    dress(speed, "Speed, all ranks", "epoch", "images/s")
    speed.plot(epochs, [row["images_per_second"] for row in train], color=OURS, lw=1.2)
    speed.set_ylim(bottom=0)
    for row in rows:
        if row["event"] == "start" and row["iteration"]:
            speed.axvline(at(row["iteration"]), color=PUBLISHED, lw=1.0, ls=":")
    dress(rate, "Learning rate of the backbone", "epoch", "")
    rate.plot(epochs, [row["learning_rate"] for row in train], color=OURS, lw=1.6)
    rate.set_ylim(bottom=0)
    return figure


def write_png(figure: Figure, path: Path) -> None:
    """Write all of it or nothing."""
    temporary = path.with_suffix(".tmp")
    figure.savefig(temporary, format="png", dpi=160)
    temporary.replace(path)


def svg(figure: Figure) -> bytes:
    """The same picture as SVG, letters as outlines: it looks alike everywhere."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def mul_add_unit(mul_adds: Sequence[float]) -> tuple[float, str]:
    """(1e9, "G") where the largest cost is that large, else (1e6, "M")."""
    return (1e9, "G") if max(mul_adds) >= 5e8 else (1e6, "M")


def exit_colours(num_exits: int) -> list[Any]:
    """Light to dark: later exits are darker."""
    scale = colormaps["viridis_r"]
    return [scale(0.15 + 0.8 * k / max(1, num_exits - 1)) for k in range(num_exits)]


def thinned(rows: Sequence[Row]) -> list[Row]:
    """At most about MOST_POINTS evenly spaced rows, the last among them."""
    stride = -(-len(rows) // MOST_POINTS)
    return list(rows[::-1][:: max(1, stride)][::-1])


def _weights(axes: Sequence[Axes], rows: Sequence[Row], colours: Sequence[Any]) -> None:
    epochs = [row["epoch"] for row in rows]
    dress(axes[0], "Sample weights: median, 5 to 95 % band", "", "weight")
    for k, colour in enumerate(colours):
        low, middle, high = zip(*(map(_number, row["weight_quantiles"][k]) for row in rows), strict=True)
        axes[0].plot(epochs, middle, color=colour, lw=1.3)
        axes[0].fill_between(epochs, low, high, color=colour, alpha=0.13, lw=0)
    dress(axes[1], "Mean weight: harder (line), easier half (dashes)", "", "weight")
    for k, colour in enumerate(colours):
        axes[1].plot(epochs, [_number(row["weight_hard"][k]) for row in rows], color=colour, lw=1.3)
        axes[1].plot(epochs, [_number(row["weight_easy"][k]) for row in rows], color=colour, lw=1.1, ls="--")
    for axis in axes:
        axis.axhline(1.0, color=INK, lw=0.6, alpha=0.5)


def _over_cost(budgeted: Sequence[Row], scale: float) -> tuple[list[float], list[float]]:
    points = sorted((row["mul_adds"] / scale, row["top1"]) for row in budgeted)
    return [cost for cost, _ in points], [top1 for _, top1 in points]


def _epoch_of(train: Sequence[Row]) -> Any:
    """iteration -> epoch, by the last log step's proportion."""
    last = train[-1]
    per_iteration = last["epoch"] / last["iteration"] if last["iteration"] else 0.0
    return lambda iteration: iteration * per_iteration


def _number(value: float | None) -> float:
    """The log writes null for what was not finite; a gap in the curve."""
    return float("nan") if value is None else value


def dress(axes: Axes, title: str, x: str, y: str) -> None:
    """Title, labels and the looks that all figures share."""
    axes.set_title(title, loc="left", size=11, color=INK)
    axes.set_xlabel(x, color=INK)
    axes.set_ylabel(y, color=INK)
    axes.grid(color=GRID, lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(colors=INK, labelsize=9)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7))
