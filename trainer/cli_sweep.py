"""The command that trains every combination of some settings, on any target, and reports all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from trainer.cli_options import AsJson, Data, RecipeName, Settings
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

if TYPE_CHECKING:
    from trainer.reporting.comparison import Group
    from trainer.run.trials import Trial

_VARY = "NAME=VALUE,VALUE; NAME:NAME=VALUE:VALUE,... changes several together; ; parts values that hold commas."


def sweep(
    recipe: RecipeName,
    vary: Annotated[list[str] | None, typer.Option("--vary", metavar="NAME=A,B", help=_VARY)] = None,
    seeds: Seeds = "",
    folder: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Of all runs; default runs/RECIPE-sweep.")
    ] = None,
    data: Data = "",
    settings: Settings = None,
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
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs, and train nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train one run a combination and seed, then compare them: a table, and comparison.html in the folder.

    Given again, the same command skips what is complete, follows what goes on, and tries again what failed. Exit code
    1 where a run failed.
    """
    from trainer.run.trials import run_trials

    home = folder or Path("runs") / f"{recipe}-sweep"
    trials = trials_of(recipe, vary or [], seeds, settings, home)
    if len(trials) == 1:
        raise ValueError("this is one run, no sweep; give --vary NAME=A,B or --seeds 5, or use earlybird train")
    where = place(target, nodes, gpus, cpus, memory, limit, site, data, data_elsewhere, max_steps, parallel, wait)
    if dry_run:
        rows = [{"run": str(trial.folder), "settings": list(trial.settings)} for trial in trials]
        lines = [f"{row['run']}  {' '.join(row['settings'])}" for row in rows]
        print(json.dumps(rows) if as_json else "\n".join(lines))
        return
    states = run_trials(trials, where, teller(home))
    finish(states, home, as_json)


def trials_of(recipe: str, vary: list[str], seeds: str, settings: list[str] | None, home: Path) -> list[Trial]:
    """One a combination and seed, each in a folder of its own in `home`."""
    from deploy.sweep import combinations
    from trainer.config import resolve
    from trainer.run.trials import seeded
    from trainer.settings import setting_names

    lists = [name for name, value in setting_names(resolve(recipe, [])).items() if isinstance(value, tuple)]
    return [
        trial
        for one in combinations(vary, lists)
        for trial in seeded(recipe, (*(settings or []), *one.settings), home, seeds_of(seeds), one.label)
    ]


def finish(states: Mapping[Path, str], home: Path, as_json: bool) -> None:
    """Compare what is complete, say what is not; exit code 1 where a run failed."""
    from trainer.reporting.comparison import read_groups, write_comparison

    done = [folder for folder, state in states.items() if state == "completed"]
    found = read_groups(done) if done else []
    page = write_comparison(done, home / "comparison.html") if done else None
    left = {str(folder): state for folder, state in states.items() if state != "completed"}
    if as_json:
        rows = [group_row(group) for group in found]
        print(json.dumps({"folder": str(home), "rows": rows, "left": left, "report": str(page) if page else None}))
    else:
        if found:
            show_groups(found)
            print(f"Report: {page}")
        for folder, state in left.items():
            print(f"{folder}: {state}")
        if "pending" in left.values():
            print("Next: the same command again, which reports what is complete by then")
    if any(state in ("failed", "cancelled") for state in left.values()):
        raise typer.Exit(1)


def group_row(group: Group) -> dict[str, Any]:
    """Mean and spread of top-1 by exit over the seeds of one combination."""
    runs = [str(run.folder) for run in group.runs]
    return {"name": group.name, "runs": runs, "top1": group.mean, "spread": group.spread}


def show_groups(found: list[Group]) -> None:
    exits = [f"exit {k}" for k in range(1, len(found[0].mean) + 1)]
    table = Table("", "runs", *exits, title=f"Top-1 %, {found[0].runs[0].split}", title_justify="left")
    for group in found:
        spreads = [""] * len(group.mean) if group.spread is None else [f" ± {spread:.2f}" for spread in group.spread]
        cells = [f"{mean:.2f}{spread}" for mean, spread in zip(group.mean, spreads, strict=True)]
        table.add_row(group.name, str(len(group.runs)), *cells)
    Console(soft_wrap=True).print(table, highlight=False)
