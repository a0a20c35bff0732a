"""The command that prints a published table with our figures beside it, and trains what it needs."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from trainer.cli_cost import reproduce_costs
from trainer.cli_options import AsJson, Data, Device, Settings
from trainer.cli_place import (
    Cpus,
    DataElsewhere,
    Gpus,
    Limit,
    MaxSteps,
    Memory,
    Nodes,
    Parallel,
    Seeds,
    SiteName,
    Target,
    Wait,
    place,
    seeds_of,
    teller,
)


def reproduce(
    table: Annotated[
        str, typer.Argument(metavar="TABLE", help="cost | imagenet | imagenet-label-smoothing | weight-net")
    ],
    from_runs: Annotated[
        list[Path] | None, typer.Option("--from", metavar="RUN", help="A run to collect; may be repeated.")
    ] = None,
    seeds: Seeds = "",
    folder: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Of all runs; default runs/TABLE.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Train what is missing; without it, only the forecast.")] = False,
    batch: Annotated[
        int, typer.Option(min=0, help="Images an iteration of the forecast; 0: the recipe's, on a CPU at most 64.")
    ] = 0,
    steps: Annotated[int, typer.Option(min=6, help="Iterations that the forecast measures of each recipe.")] = 30,
    data: Data = "",
    settings: Settings = None,
    device: Device = "auto",
    target: Target = "local",
    nodes: Nodes = 1,
    gpus: Gpus = 0,
    cpus: Cpus = 0,
    memory: Memory = "",
    limit: Limit = "",
    site: SiteName = "",
    data_elsewhere: DataElsewhere = False,
    max_steps: MaxSteps = 0,
    parallel: Parallel = 0,
    wait: Wait = False,
    as_json: AsJson = False,
) -> None:
    """Ours beside the published figures, with differences.

    `cost` runs anywhere. An accuracy table collects --from runs, or trains its rows: first it measures here what they
    will take and ends with exit code 1; with --yes it trains them and prints the table.
    """
    from trainer.reporting.published_tables import COST, accuracy_rows
    from trainer.reporting.tables import accuracy_table
    from trainer.run.trials import is_complete, run_trials, seeded

    if table == COST:
        reproduce_costs(as_json)
        return
    rows = accuracy_rows(table)
    if from_runs:
        _show(table, accuracy_table(table, from_runs), as_json)
        return
    home = folder or Path("runs") / table
    trials = [
        trial
        for row in rows
        for trial in seeded(row.recipe, (*row.settings, *(settings or [])), home, seeds_of(seeds), row.name)
    ]
    left = [trial for trial in trials if not is_complete(trial.folder, max_steps)]
    if left and not yes:
        _forecast(left, data, device, steps, batch, as_json)
        raise typer.Exit(1)
    where = place(
        target=target,
        nodes=nodes,
        gpus=gpus,
        cpus=cpus,
        memory=memory,
        limit=limit,
        site=site,
        data=data,
        data_elsewhere=data_elsewhere,
        max_steps=max_steps,
        parallel=parallel,
        wait=wait,
    )
    states = run_trials(trials, where, teller(home))
    _show(table, accuracy_table(table, [run for run, state in states.items() if state == "completed"]), as_json)
    if any(state != "completed" for state in states.values()):
        raise typer.Exit(1)


def _forecast(left: list[Any], data: str, device: str, steps: int, batch: int, as_json: bool) -> None:
    """Measures each recipe once: the weight net's size and the seed change no time worth telling."""
    from dataloading.datasets.open import open_dataset
    from trainer.doctor.forecast import forecast
    from trainer.run.distributed import process_group
    from trainer.run.trials import trial_config
    from trainer.telemetry.progress_bar import ProgressBar

    rows, errors = [], Console(stderr=True)
    with process_group(device) as ranks:
        for recipe in dict.fromkeys(trial.recipe for trial in left):
            runs = [trial for trial in left if trial.recipe == recipe]
            config = trial_config(runs[0], data)
            with closing(ProgressBar()) as bar:
                images = open_dataset(config.data, config.seed, progress=bar)
            with errors.status(f"measuring {recipe}"):
                found = forecast(config, images, ranks, steps=steps, batch=batch)
            rows.append(
                {
                    "recipe": recipe,
                    "runs": len(runs),
                    "epochs": config.run.epochs,
                    "device": f"{found.devices} x {found.device}",
                    "images_per_second": found.images_per_second,
                    "device_hours_each": found.device_hours,
                    "device_hours": found.device_hours * len(runs),
                }
            )
    total = sum(row["device_hours"] for row in rows)
    if as_json:
        print(json.dumps({"forecast": rows, "device_hours": total}))
        return
    table = Table("recipe", "runs", "epochs", "images/s", "device hours each", "together")
    for row in rows:
        table.add_row(
            row["recipe"],
            str(row["runs"]),
            str(row["epochs"]),
            f"{row['images_per_second']:,.1f}",
            f"{row['device_hours_each']:,.2f}",
            f"{row['device_hours']:,.2f}",
        )
    Console(soft_wrap=True).print(table, highlight=False)
    print(f"{total:,.2f} hours of {rows[0]['device']}, measured here. Nothing was started: --yes starts it.")


def _show(name: str, rows: list[dict[str, Any]], as_json: bool) -> None:
    from trainer.reporting.published_tables import in_words

    if as_json:
        print(json.dumps({"table": name, "rows": rows}))
        return
    exits = [f"exit {k}" for k in range(1, len(rows[0]["published"]) + 1)]
    table = Table("row", "", *exits, title=f"{name}: top-1 %", title_justify="left")
    for row in rows:
        table.add_row(row["name"], "published", *(f"{value:.2f}" for value in row["published"]))
        if row["top1"] is not None:
            spreads = row["spread"] or [None] * len(row["top1"])
            ours = [
                f"{mean:.2f}" + (f" ± {spread:.2f}" if spread is not None else "")
                for mean, spread in zip(row["top1"], spreads, strict=True)
            ]
            table.add_row("", f"ours, {len(row['runs'])} runs", *ours)
        if row["difference"] is not None:
            table.add_row("", "difference", *(f"{value:+.2f}" for value in row["difference"]))
    Console(soft_wrap=True).print(table, highlight=False)
    for row in rows:
        if row["differs"]:
            other = "" if row["difference"] else ", on another net or other classes, so that no difference is shown"
            print(f"{row['name']} was trained otherwise than published{other}: {in_words(row['differs'])}")
