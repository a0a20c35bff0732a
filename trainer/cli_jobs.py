"""The commands that follow and stop what was submitted: the same words on every target."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from trainer.cli_options import AsJson

if TYPE_CHECKING:
    from deploy.record import Record

RunFolderName = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder that submit was given.")]


def logs(
    run: RunFolderName,
    rank: Annotated[int | None, typer.Option(help="Default: the first, 0.", min=0)] = None,
    job: Annotated[bool, typer.Option("--job", help="The job's own log: its script, torchrun, the scheduler.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended.")] = False,
) -> None:
    """What a rank of a submitted run printed, over all its restarts."""
    from deploy.targets import target_of

    if job and rank is not None:
        raise ValueError(f"--rank {rank} and --job are two logs; give one of them")
    record = _record(run)
    if record.run_folders:
        raise ValueError(f"{run} holds {len(record.run_folders)} runs; give one of them, as {record.run_folders[0]}")
    try:
        for chunk in target_of(record.target).logs(record, None if job else rank or 0, follow):
            sys.stdout.write(chunk)
            sys.stdout.flush()
    except BrokenPipeError:  # its reader has seen enough; nor may the interpreter's last flush complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def cancel(run: RunFolderName, as_json: AsJson = False) -> None:
    """Stop a submitted run for good; it saves first. Of an array in its folder: all of its runs."""
    from deploy.targets import target_of

    record = _record(run)
    target_of(record.target).cancel(record)
    told = {"target": record.target, "id": record.id, "state": "cancelling"}
    print(json.dumps(told) if as_json else f"job {record.id} on {record.target} is asked to stop; it saves first")


def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where run folders lie.")] = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Every run in a folder, submitted or not, and how it stands."""
    from trainer.run.job_state import find_runs, job_status

    rows = [{"run": str(run), **job_status(run, brief=True)} for run in find_runs(folder)]
    show_runs(rows, as_json)


def show_runs(rows: list[dict[str, Any]], as_json: bool) -> None:
    """As a table, or as JSON."""
    if as_json:
        print(json.dumps(rows))
        return
    table = Table("run", "state", "recipe", "epoch", "iteration", "restarts", "job", box=None, pad_edge=False)
    for row in rows:
        job = row["job"]
        table.add_row(
            row["run"],
            row["state"],
            row["recipe"],
            f"{row['epoch']:.2f}",
            str(row["step"]),
            str(row["restarts"]),
            f"{job['id']} on {job['target']}" if job else "-",
        )
    Console(soft_wrap=True).print(table, highlight=False, markup=False)


def _record(run: Path) -> Record:
    from deploy.record import read_record

    record = read_record(run)
    if record is None:
        raise ValueError(f"{run} holds no job (it has no job.json); earlybird runs lists those that were submitted")
    return record
