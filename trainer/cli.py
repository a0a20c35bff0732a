"""The command line: each command reads its input, calls the room that does the work, and prints."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from trainer.cli_benchmark import benchmark_app
from trainer.cli_cost import cost
from trainer.cli_data import data_app, prepare
from trainer.cli_doctor import doctor
from trainer.cli_export import export, import_checkpoint
from trainer.cli_exporter import exporter
from trainer.cli_help import Panels
from trainer.cli_inference import inference, predict
from trainer.cli_jobs import cancel, logs, runs
from trainer.cli_options import AsJson, Data, Device, RecipeName, Settings
from trainer.cli_reproduce import reproduce
from trainer.cli_scale import index, memory
from trainer.cli_status import status
from trainer.cli_submit import submit
from trainer.cli_sweep import show_comparison, sweep
from trainer.cli_tune import tune
from trainer.cli_watch import watch
from trainer.settings import with_data, with_origin
from trainer.telemetry.jsonl import to_json

# Rooms are imported inside the commands: torch alone takes seconds, and --help needs none of it.

app = typer.Typer(
    cls=Panels,
    help="Train networks that can answer early: multi-exit nets with learned sample weights.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RUN_HELP = "Run folder; default runs/RECIPE. (torchrun takes --run for its own: write --run-folder there.)"


@app.callback()
def logging_level(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what is chosen and why.")] = False,
) -> None:
    """Train networks that can answer early: multi-exit nets with learned sample weights."""
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )


def recipes(as_json: AsJson = False) -> None:
    """List the recipes."""
    from trainer.recipes.catalogue import describe, recipe_names

    rows = [{"recipe": name, "description": describe(name)} for name in recipe_names()]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    width = max(len(row["recipe"]) for row in rows)
    for row in rows:
        print(f"{row['recipe']:{width}} {row['description']}")


def show(recipe: RecipeName, settings: Settings = None, as_json: AsJson = False) -> None:
    """Show a recipe whole: every setting and its value."""
    from trainer.config import resolve, to_dict
    from trainer.settings import setting_names

    config = resolve(recipe, settings or [])
    if as_json:
        print(json.dumps(to_dict(config), indent=1))
        return
    for name, value in setting_names(config).items():
        print(f"{name:32} {value}")


def train(
    recipe: RecipeName,
    data: Data = "",
    run: Annotated[Path | None, typer.Option("--run", "--run-folder", metavar="FOLDER", help=RUN_HELP)] = None,
    settings: Settings = None,
    max_steps: Annotated[int, typer.Option(help="Stop after so many iterations of the run; 0 runs it whole.")] = 0,
    device: Device = "auto",
    seed: Annotated[int | None, typer.Option(help="Seed of the initial weights and of the data stream.")] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(metavar="GROUP.FIELD", help="A setting that may differ from the run folder's; may be repeated."),
    ] = None,
    from_run: Annotated[
        Path | None, typer.Option("--from", metavar="RUN", help="The run whose net ...-imta-finetune begins with.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Train a recipe; goes on from the run folder's newest checkpoint if it has one."""
    from trainer.run.refusal import refused_once

    folder = run or Path("runs") / recipe
    with refused_once(folder):
        from trainer.config import resolve
        from trainer.run.signals import STOPPED
        from trainer.run.training import Options, run_training

        overrides = with_origin(from_run, with_data(data, settings))
        overrides += [f"seed={seed}"] if seed is not None else []
        config = resolve(recipe, overrides)
        summary = run_training(config, Options(folder, max_steps, device, tuple(allow or ())))
    if os.environ.get("RANK", "0") == "0":
        if as_json:
            print(to_json(summary))
        else:
            scores = " ".join(f"{row['top1']:.2f}" for row in summary["exits"])
            print(
                f"{summary['status']} after {summary['iterations']} iterations: "
                f"top-1 % by exit {scores or '-'}, "
                f"{summary['images_per_second']:.0f} images/s.\n"
                f"Next: earlybird evaluate {folder}"
            )
    if summary["status"] == "preempted":
        raise typer.Exit(STOPPED)


def evaluate(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    split: Annotated[str, typer.Option(help="val | heldout: what the anytime figures are taken on.")] = "val",
    data: Annotated[str, typer.Option(metavar="PATH", help="The data, if it has moved since training.")] = "",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Score a run: every exit (anytime), and 39 budgets with thresholds from the held-out split (budgeted batch)."""
    from trainer.evaluation.command import evaluate_run
    from trainer.reporting.report import write_report
    from trainer.run.folder import RunFolder

    result = evaluate_run(run, split, data, device)
    if os.environ.get("RANK", "0") != "0":
        return
    RunFolder(run).write_evaluation(result)
    page = write_report(run, result)
    if as_json:
        print(to_json({key: result[key] for key in ("split", "anytime", "budgeted", "per_class", "shots")}))
        return
    console = Console()
    table = Table("exit", "top-1 %", "top-5 %", "loss", "images", title=f"Anytime, {split}", title_justify="left")
    for row in result["anytime"]:
        table.add_row(
            str(row["exit"]), f"{row['top1']:.2f}", f"{row['top5']:.2f}", f"{row['loss']:.4f}", f"{row['num_images']}"
        )
    console.print(table)
    if len(result["shots"]) > 1:
        exits = [f"exit {row['exit']}" for row in result["anytime"]]
        table = Table(
            "training images", "classes", *exits, title=f"Top-1 % by class size, {split}", title_justify="left"
        )
        for row in result["shots"]:
            table.add_row(row["group"], str(row["num_classes"]), *(f"{value:.2f}" for value in row["top1"]))
        console.print(table)
    if not result["budgeted"]:
        console.print("No budgeted figures: the run holds no images out of training (data.heldout is 0).")
    table = Table("ratio", "top-1 %", "Mul-Adds M", title=f"Budgeted batch, {split}", title_justify="left")
    for row in result["budgeted"][::4]:
        table.add_row(f"{row['ratio']:.2f}", f"{row['top1']:.2f}", f"{row['mul_adds'] / 1e6:.2f}")
    if result["budgeted"]:
        console.print(table)
    print(f"Curves: {run / 'curves.png'}\nReport: {page}")


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders; several are set side by side.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Of several runs; default comparison.html.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's report page anew, from its log and its last evaluation; of several runs one page that compares
    them, and the same as tables: means over seeds, and differences, with their confidence intervals."""
    from trainer.reporting.comparison import compare, write_page
    from trainer.reporting.comparison_table import comparison_values
    from trainer.reporting.report import write_report
    from trainer.run.folder import RunFolder

    if len(runs) > 1:
        found = compare(runs)
        page = write_page(found, out or Path("comparison.html"))
        if as_json:
            print(json.dumps({**comparison_values(found), "report": str(page)}))
        else:
            show_comparison(found, page)
        return
    if out is not None:
        raise ValueError(f"--out {out} is for several runs; the report of one is {runs[0] / 'report.html'}")
    page = write_report(runs[0], RunFolder(runs[0]).read_evaluation())
    print(json.dumps({"report": str(page)}) if as_json else f"Report: {page}")


PANELS: dict[str, tuple[Callable[..., None], ...]] = {
    "From images to a report": (prepare, train, evaluate, report),
    "A trained net": (predict, export, import_checkpoint),
    "Recipes and published figures": (recipes, show, cost, reproduce),
    "Several runs": (sweep, tune),
    "Jobs, here and on clusters": (submit, status, runs, logs, cancel, watch),
    "This machine": (doctor,),
}
for panel, commands in PANELS.items():
    for command in commands:
        app.command(rich_help_panel=panel)(command)
for command in (index, memory, exporter, inference):
    benchmark_app.command()(command)
app.add_typer(data_app, name="data", rich_help_panel="This machine")
app.add_typer(benchmark_app, name="benchmark", rich_help_panel="This machine")
