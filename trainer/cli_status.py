"""The command that says how a run stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from trainer.cli_jobs import show_runs
from trainer.cli_options import AsJson


def status(
    run: Annotated[
        Path | None, typer.Argument(metavar="RUN", help="A run folder; not given: every run in runs.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """How a run stands: how far it is, what its time went into, its newest checkpoint and the hash of its weights; of a
    submitted one also what its scheduler says.

    Exit code 0, or 1 where a run failed, diverged, died or was cancelled.
    """
    from trainer.run.job_state import BAD, find_runs, job_status, whole_array

    array = whole_array(run) if run is not None else None
    if run is None or array is not None:
        folders = [Path(folder) for folder in array.run_folders] if array else list(find_runs(Path("runs")))
        rows = [{"run": str(folder), **job_status(folder, brief=True)} for folder in folders]
        show_runs(rows, as_json)
    else:
        rows = [{"run": str(run), **job_status(run)}]
        print(json.dumps(rows[0]) if as_json else "\n".join(_lines(rows[0])))
    if any(row["state"] in BAD for row in rows):
        raise typer.Exit(1)


def _lines(result: dict[str, Any]) -> list[str]:
    lines = [
        f"{result['state']}: {result['recipe']}, epoch {result['epoch']:.2f}, iteration {result['step']}, "
        f"{result['images_seen']:,} images, {result['restarts']} restarts"
    ]
    if job := result["job"]:
        where = f" on {job['nodes']}" if job["nodes"] else ""
        why = f" ({job['reason']})" if job["reason"] else ""
        lines.append(f"job {job['id']} of {job['target']}: {job['state']}{where}{why}")
    if result["goodput_ratio"] is not None:
        lost = (f"{cause.replace('_', ' ')} {s:.0f} s" for cause, s in result["badput_seconds"].items() if s >= 0.5)
        lines.append(f"goodput {100 * result['goodput_ratio']:.1f} %; the rest: {', '.join(lost) or 'nothing'}")
    if result["last_checkpoint"]:
        last = result["last_checkpoint"]
        lines.append(f"newest checkpoint {last['folder']}, {last['age_seconds']:.0f} s old")
        lines.append(f"weights sha256 {result['weights_sha256']}")
    return lines
