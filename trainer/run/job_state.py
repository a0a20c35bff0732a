"""How a run stands that was submitted: what its folder says and what its scheduler says, as one."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.record import Record, read_record
from deploy.target import ENDED, Standing
from deploy.targets import standing_of
from trainer.run.folder import RunFolder
from trainer.run.refusal import why_refused
from trainer.run.status import run_brief, run_status

OVER = ("completed", "stopped", "diverged")  # by the run's own word: no scheduler needs to be asked
BAD = ("failed", "diverged", "dead", "cancelled")
_DEEPEST = 3  # folders below the one that is searched for runs


def job_status(run: Path, *, brief: bool = False) -> dict[str, Any]:
    """`run_status` (or `run_brief`) of a folder, and under "job" target, id, state, reason and nodes of its job, or
    null. Before the run has begun, what is known of the job. ValueError where the folder holds neither."""
    record = read_record(run)
    if record is not None and not RunFolder(run).config_file.is_file():
        result: dict[str, Any] = {"state": None, "recipe": record.recipe, "epoch": 0.0, "step": 0}
        result |= {"images_seen": 0, "restarts": 0}
        if not brief:
            result |= {"goodput_ratio": None, "badput_seconds": {}, "last_checkpoint": None, "weights_sha256": None}
    else:
        result = run_brief(run) if brief else run_status(run)
    if record is None:
        return result | {"job": None}
    standing = Standing("unknown") if brief and result["state"] in OVER else standing_of(record)
    if standing.state == "failed" and (reason := why_refused(run)):
        standing = dataclasses.replace(standing, reason=reason)
    job = {"target": record.target, "id": record.id, "name": record.name, **dataclasses.asdict(standing)}
    return result | {"state": together(result["state"], standing), "job": job}


def together(run_state: str | None, standing: Standing) -> str:
    """The state of a run (None: it has not begun) whose job stands so.

    A job that waits says more than the log of its last start; a job that has ended says more than a log which nobody
    closed.
    """
    job_state = "pending" if standing.state == "preempted" else standing.state
    if run_state in OVER or standing.state == "unknown":
        return run_state or "unknown"
    if run_state is None or job_state == "pending":
        return job_state
    if standing.state in ENDED:
        if run_state == "preempted":
            return "cancelled" if standing.state == "cancelled" else run_state
        return run_state if run_state in BAD and run_state != "dead" else job_state
    return run_state if run_state in ("running", "stalled") else "starting"


def find_runs(folder: Path) -> Iterator[Path]:
    """Folders in `folder` that hold a run or one that was submitted, by name; of an array its runs."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give the one that holds the run folders")
    for path in sorted(path for depth in range(_DEEPEST) for path in folder.glob("/".join(["*"] * (depth + 1)))):
        if (path / "config.json").is_file() or ((record := read_record(path)) and not record.run_folders):
            yield path


def whole_array(run: Path) -> Record | None:
    """The record of an array in its folder, None where `run` is anything else."""
    record = read_record(run)
    return record if record is not None and record.run_folders else None
