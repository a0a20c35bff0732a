"""The command that prints a published table with our figures beside it, and trains what it needs."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from trainer.cli_cost import reproduce_costs
from trainer.cli_forecast import device_hours, forecast_rows, show_forecast
from trainer.cli_options import AsJson, Data, Device, Settings, refuse_given
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
    context: typer.Context,
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
    will take; it ends there with exit code 1, or with --yes trains them and prints the table.
    """
    from trainer.reporting.published_tables import COST, accuracy_rows
    from trainer.reporting.tables import accuracy_table
    from trainer.run.trials import is_complete, plan, run_trials, seeded

    if table == COST:
        refuse_given(context, ("as_json",), f"on reproduce {COST}, which trains nothing")
        reproduce_costs(as_json)
        return
    rows = accuracy_rows(table)
    if from_runs:
        refuse_given(context, ("from_runs", "as_json"), "beside --from, which trains nothing")
        _show(table, accuracy_table(table, from_runs), as_json)
        return
    home = folder or Path("runs") / table
    trials = {
        row: seeded(row.recipe, (*row.settings, *(settings or [])), home, seeds_of(seeds), row.name) for row in rows
    }
    left = {row: [one for one in of_row if not is_complete(one.folder, max_steps)] for row, of_row in trials.items()}
    left = {row: of_row for row, of_row in left.items() if of_row}
    if left and data_elsewhere and not yes:
        raise ValueError("--data-elsewhere: nothing can be measured without the images; add --yes to train unmeasured")
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
    every = [trial for of_row in trials.values() for trial in of_row]
    plan(every, where)
    forecast: list[dict[str, Any]] = []
    if left and not data_elsewhere:
        forecast = forecast_rows(left, data, device, steps, batch)
        if as_json and not yes:
            print(json.dumps({"forecast": forecast, "device_hours": device_hours(forecast)}))
        else:
            command = shlex.join(["earlybird", "reproduce", table, *(["--data", data] if data else [])])
            show_forecast(forecast, command, target, Console(stderr=as_json, soft_wrap=True))
    if left and not yes:
        if not as_json:
            print("Nothing was started: --yes starts it.")
        raise typer.Exit(1)
    states = run_trials(every, where, teller(home))
    complete = [run for run, state in states.items() if state == "completed"]
    _show(table, accuracy_table(table, complete), as_json, forecast)
    if any(state != "completed" for state in states.values()):
        raise typer.Exit(1)


def _show(name: str, rows: list[dict[str, Any]], as_json: bool, forecast: Sequence[dict[str, Any]] = ()) -> None:
    from trainer.reporting.published_tables import in_words

    if as_json:
        print(json.dumps({"table": name, "rows": rows} | ({"forecast": forecast} if forecast else {})))
        return
    table = Table(title=f"{name}: top-1 %", title_justify="left")
    for column in ("row", "", *(f"exit {k}" for k in range(1, len(rows[0]["published"]) + 1))):
        table.add_column(column, overflow="fold")
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
