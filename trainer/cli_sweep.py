"""The command that trains every combination of some settings, on any target, and reports all of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from trainer.cli_options import AsJson, Data, RecipeName, Settings
from trainer.cli_place import (
    Cpus,
    DataElsewhere,
    Gpus,
    Limit,
    MaxSteps,
    Memory,
    Nodes,
    Origin,
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
    from trainer.reporting.comparison import Comparison
    from trainer.run.trials import Trial

_EVALUATE = "Evaluate complete runs here before they are compared; if not given, those of this machine's target alone."
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
    origin: Origin = None,
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
    evaluate: Annotated[bool | None, typer.Option("--evaluate/--no-evaluate", help=_EVALUATE)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and list the runs, and train nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train one run a combination and seed, evaluate and compare them: tables, and comparison.html in the folder.

    Given again, the same command skips what is complete, follows what goes on, and tries again what failed. Exit code
    1 where a run failed, or nobody can say how it stands.
    """
    from trainer.run.trials import plan, run_trials

    home = folder or Path("runs") / f"{recipe}-sweep"
    trials = trials_of(recipe, vary or [], seeds, settings, home, origin)
    if len(trials) == 1:
        raise ValueError("this is one run, no sweep; give --vary NAME=A,B or --seeds 5, or use earlybird train")
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
    if dry_run:
        plan(trials, where)
        rows = [{"run": str(trial.folder), "settings": list(trial.settings)} for trial in trials]
        lines = [f"{row['run']}  {' '.join(row['settings'])}" for row in rows]
        print(json.dumps(rows) if as_json else "\n".join(lines))
        return
    states = run_trials(trials, where, teller(home))
    if target == "local" if evaluate is None else evaluate:
        evaluate_complete(states, data, teller(home))
    finish(states, home, as_json)


def trials_of(
    recipe: str, vary: list[str], seeds: str, settings: list[str] | None, home: Path, origin: Path | None = None
) -> list[Trial]:
    """One a combination and seed, each in a folder of its own in `home`."""
    from deploy.sweep import combinations
    from trainer.config import resolve
    from trainer.run.trials import seeded
    from trainer.settings import setting_names

    lists = [name for name, value in setting_names(resolve(recipe, [])).items() if isinstance(value, tuple)]
    return [
        trial
        for one in combinations(vary, lists)
        for trial in seeded(recipe, (*(settings or []), *one.settings), home, seeds_of(seeds), one.label, origin)
    ]


def evaluate_complete(states: Mapping[Path, str], data: str, told: Callable[[Path, str], None]) -> None:
    """Evaluate the complete runs whose evaluation is missing or of another checkpoint than their last one.

    data  where the images lie, "" where the runs found them
    A run that cannot be evaluated here is told of, and compared by its log.
    """
    from trainer.evaluation.command import evaluate_run
    from trainer.evaluation.thresholds import is_of
    from trainer.reporting.report import write_report
    from trainer.run.folder import RunFolder

    for run in [run for run, state in states.items() if state == "completed"]:
        folder = RunFolder(run)
        if is_of(folder.read_evaluation(), (folder.read_summary() or {}).get("iterations")):
            continue
        told(run, "is being evaluated")
        try:
            result = evaluate_run(run, "val", data, "auto")
        except (ValueError, OSError) as error:
            told(run, f"not evaluated ({error})")
            continue
        folder.write_evaluation(result)
        write_report(run, result)


def finish(states: Mapping[Path, str], home: Path, as_json: bool) -> None:
    """Compare what is complete, say what is not; exit code 1 where a run failed, or nobody can say."""
    from trainer.reporting.comparison import compare, write_page
    from trainer.reporting.comparison_table import comparison_values

    done = [folder for folder, state in states.items() if state == "completed"]
    found = compare(done) if done else None
    page = write_page(found, home / "comparison.html") if found is not None else None
    left = {str(folder): state for folder, state in states.items() if state != "completed"}
    if as_json:
        values = comparison_values(found) if found is not None else {"rows": [], "differences": [], "costs": None}
        print(json.dumps({"folder": str(home), **values, "left": left, "report": str(page) if page else None}))
    else:
        if found is not None and page is not None:
            show_comparison(found, page)
        for folder, state in left.items():
            print(f"{folder}: {state}")
        if "pending" in left.values():
            print("Next: the same command again, which reports what is complete by then")
    if any(state in ("failed", "cancelled", "unknown") for state in left.values()):
        raise typer.Exit(1)


def show_comparison(found: Comparison, page: Path) -> None:
    """Its tables, what their signs mean, and where the page is."""
    from trainer.reporting.comparison_table import comparison_note, comparison_tables

    for table in comparison_tables(found):
        Console(soft_wrap=True).print(table, highlight=False)
    print(f"{comparison_note(found)}\nReport: {page}")
