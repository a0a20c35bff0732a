"""One self-contained page per run: report.html."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from trainer.config import Config, read_config
from trainer.evaluation.per_class import SIZES
from trainer.reporting.class_plot import class_figure
from trainer.reporting.plots import Series, accuracy_figure, mul_add_unit, svg, training_figure, write_png
from trainer.reporting.provenance import (
    changed_settings,
    command,
    environment,
    starts,
    trained_on,
    where_time_went,
)
from trainer.reporting.published_tables import TableRow, fits, in_words, otherwise, row_of, twin_of
from trainer.settings import setting_names
from trainer.telemetry.jsonl import read_rows, still_true

Row = Mapping[str, Any]

TEMPLATES = Environment(
    loader=PackageLoader("trainer", "reporting"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)


def write_report(run: Path, evaluation: Row | None = None) -> Path:
    """Write `report.html` (and, with costs, `curves.png`) into a run folder; the page's path.

    evaluation  what evaluate_run gives: recipe, iteration, split, num_heldout, mul_adds [K], anytime, budgeted rows;
                without it the page shows the log's newest evaluation and no costs
    Raises ValueError where the folder holds no readable run.
    """
    run = Path(run)
    if not (run / "config.json").is_file():
        raise ValueError(f"{run} is no run folder (it has no config.json); give one that train wrote")
    config = read_config(run / "config.json")
    everything = read_rows(run / "log.jsonl")
    rows = still_true(everything)
    evaluation = evaluation or newest_evaluation(rows)
    known = trained_on(run, rows, evaluation)
    meant = row_of(config)
    own, twin = (row if row is not None and fits(row, config, known) else None for row in (meant, twin_of(config)))
    published = [row for row in (own, twin) if row is not None]
    figures = {"accuracy": "", "classes": "", "training": ""}
    if evaluation and evaluation.get("mul_adds"):
        figure = curves(config, evaluation, published)
        write_png(figure, run / "curves.png")
        figures["accuracy"] = embedded(figure)
    if evaluation and _long_tailed(_by_size(evaluation)):
        figures["classes"] = embedded(class_figure(_by_size(evaluation)))
    training = training_figure(rows)
    if training is not None:
        figures["training"] = embedded(training)
    page = TEMPLATES.get_template("report.html").render(
        config=config,
        evaluation=evaluation,
        table=exit_table(evaluation, own, twin) if evaluation else [],
        published=[row.label for row in published],
        otherwise=in_words(otherwise(meant, config, known, evaluation["split"])) if meant and evaluation else "",
        changed=changed_settings(config),
        budgeted=_budgeted_rows(evaluation) if evaluation else [],
        per_class=_by_size(evaluation) if evaluation else [],
        shots=(evaluation or {}).get("shots", []),
        sizes=SIZES,
        figures=figures,
        facts=_facts(rows, everything, evaluation),
        troubles=_troubles(rows),
        time=where_time_went(everything),
        starts=starts(everything),
        command=command(config),
        environment=environment(run, rows),
        settings=setting_names(config),
    )
    temporary = run / "report.tmp"
    temporary.write_text(page, encoding="utf-8")
    return temporary.replace(run / "report.html")


def curves(config: Config, evaluation: Row, published: Sequence[TableRow]) -> Figure:
    """The two accuracy-over-cost curves of an evaluation, with the published points of the same net."""
    series = [Series(row.label, row.published.top1) for row in published]
    title = f"{config.recipe}, {evaluation['split']}, {evaluation['anytime'][0]['num_images']:,} images"
    return accuracy_figure(evaluation["anytime"], evaluation["budgeted"], evaluation["mul_adds"], series, title)


def exit_table(evaluation: Row, own: TableRow | None, twin: TableRow | None) -> list[dict[str, Any]]:
    """One row an exit: ours, the published figure of the run's `own` row and the difference, in percent and percentage
    points, and that of its unweighted `twin`; None where nothing was published of the same net."""
    theirs = own.published.top1 if own else None
    baseline = twin.published.top1 if twin else None
    mul_adds = evaluation.get("mul_adds") or []
    return [
        {
            **row,
            "cost": _cost(mul_adds, place),
            "published": theirs[place] if theirs else None,
            "difference": row["top1"] - theirs[place] if theirs else None,
            "baseline": baseline[place] if baseline else None,
        }
        for place, row in enumerate(evaluation["anytime"])
    ]


def _by_size(evaluation: Row) -> list[Row]:
    """Rows of the classes, those with the most training images first; an evaluation of the log has none."""
    return sorted(evaluation.get("per_class", []), key=lambda row: -row["num_train"])


def _long_tailed(by_size: Sequence[Row]) -> bool:
    """Whether the largest class has twice as many training images as the smallest, or more."""
    return bool(by_size) and by_size[0]["num_train"] >= 2 * by_size[-1]["num_train"]


def _cost(mul_adds: Sequence[float], place: int) -> str | None:
    if not mul_adds:
        return None
    scale, unit = mul_add_unit(mul_adds)
    return f"{mul_adds[place] / scale:.{3 if unit == 'G' else 2}f} {unit}"


def _budgeted_rows(evaluation: Row) -> list[dict[str, Any]]:
    """Every third point of the curve: enough to read, all of them are in the picture."""
    mul_adds = evaluation.get("mul_adds") or []
    if not mul_adds:
        return []
    scale, unit = mul_add_unit(mul_adds)
    return [{**row, "cost": f"{row['mul_adds'] / scale:.3f} {unit}"} for row in evaluation["budgeted"][::3]]


def newest_evaluation(rows: Sequence[Row]) -> Row | None:
    """Of the log, in the form of an evaluation without costs; None where there is none."""
    for row in reversed(rows):
        if row["event"] == "eval" and row["split"] == "val":
            return {
                "iteration": row["iteration"],
                "split": row["split"],
                "anytime": row["exits"],
                "budgeted": [],
                "mul_adds": [],
                "num_heldout": 0,
            }
    return None


def _facts(rows: Sequence[Row], every_row: Sequence[Row], evaluation: Row | None) -> list[tuple[str, str]]:
    """The tiles at the page's top."""
    train = [row for row in rows if row["event"] == "train"]
    facts = []
    if evaluation:
        best = max(evaluation["anytime"], key=lambda row: row["top1"])
        facts.append((f"top-1 at exit {best['exit']}, {evaluation['split']}", f"{best['top1']:.2f} %"))
    if train:
        seconds = sum(row["seconds"] for row in train)
        facts.append(("epochs", f"{train[-1]['epoch']:.2f}"))
        facts.append(("iterations", f"{train[-1]['iteration']:,}"))
        facts.append(("training time", str(timedelta(seconds=round(seconds)))))
        if seconds:
            facts.append(("images/s over it", f"{sum(row['images'] for row in train) / seconds:,.0f}"))
            waited = sum(row["data_wait_seconds"] for row in train) / seconds
            facts.append(("of it waiting for data", f"{100 * waited:.1f} %"))
    ends = [row for row in rows if row["event"] == "end" and row.get("goodput_ratio") is not None]
    if ends:
        facts.append(("goodput", f"{100 * ends[-1]['goodput_ratio']:.1f} %"))
    starts = sum(row["event"] == "start" for row in every_row)
    if starts > 1:
        facts.append(("restarts", str(starts - 1)))
    return facts


def _troubles(rows: Sequence[Row]) -> list[str]:
    """What a reader should know went wrong, counted by kind."""
    bad = Counter(row["reason"] for row in rows if row["event"] == "bad_image")
    skipped: Counter[str] = Counter()
    for row in rows:
        if row["event"] == "skipped_step":
            skipped[row["reason"]] += row.get("number", 1)
    return [
        *(f"{count} unreadable training images replaced ({reason})" for reason, count in bad.most_common()),
        *(f"{count} updates left out ({reason})" for reason, count in skipped.most_common()),
    ]


def embedded(figure: Figure) -> str:
    """The picture as the address of an image, so that the page needs no other file."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg(figure)).decode()
