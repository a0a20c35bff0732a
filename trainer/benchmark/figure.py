"""A benchmark's rows as horizontal bars: medians, and the 20th to 80th percentile as whiskers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure


def bars(
    rows: Sequence[Mapping[str, Any]],
    names: Sequence[str],
    title: str,
    value: str = "images_per_second",
    digits: int = 1,
) -> Figure:
    """One bar a row: its `value` between p20 and p80; the first row on top, computed ones pale."""
    figure = Figure(figsize=(8.0, 1.2 + 0.36 * len(rows)), layout="constrained")
    axes = figure.subplots()
    middle = [row[value] for row in rows]
    spread = [
        [rate - row["p20"] for rate, row in zip(middle, rows, strict=True)],
        [row["p80"] - rate for rate, row in zip(middle, rows, strict=True)],
    ]
    places = range(len(rows))
    colours = ["#8fa9c2" if row.get("computed") else "#1f4e79" for row in rows]
    drawn = axes.barh(places, middle, xerr=spread, color=colours, error_kw={"ecolor": "#333333", "capsize": 2})
    axes.bar_label(drawn, [f"{rate:,.{digits}f}" for rate in middle], padding=4, fontsize=9)
    axes.set_yticks(list(places), list(names))
    axes.invert_yaxis()
    axes.margins(x=0.12, y=0.02)
    axes.set_xlabel(value.replace("_", " "))
    axes.set_title(title, loc="left", size=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
