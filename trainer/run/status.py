"""How a run stands, read from its folder alone: whoever asks need not be where it trains."""

from __future__ import annotations

import hashlib
import socket
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from trainer.run.checkpoint import load_latest
from trainer.run.folder import RunFolder
from trainer.run.manifest import CheckpointError
from trainer.run.watchdog import last_stall
from trainer.telemetry.goodput import Goodput
from trainer.telemetry.jsonl import Row, read_rows, still_true

_SILENT_SECONDS = 600.0  # without a row, on a machine that cannot be asked
_LEARNED = ("model.", "weight_net.")  # tensors of the backbone and of the weight net


def run_brief(run: Path) -> dict[str, Any]:
    """What `run_status` says of the run's state and progress, without a look at its checkpoints."""
    return _progress(RunFolder(run), read_rows(RunFolder(run).log_file))


def run_status(run: Path) -> dict[str, Any]:
    """The state of the run in folder `run`; ValueError where there is none.

    state             running | stalled | completed | stopped | preempted | diverged | failed | dead (it ended without
                      a word)
    epoch, step       how far the newest log step is; step counts iterations, images_seen what they trained on: work
                      that a restart did again counts once
    restarts          starts after the first one
    goodput_ratio     seconds that trained over all seconds since the first start; badput_seconds: the others, by cause
    last_checkpoint   {"folder", "step", "age_seconds"} of the newest whole one, or null
    weights_sha256    over its backbone and weight net: each tensor's name, dtype, shape, bytes, by the order of names
    """
    folder = RunFolder(run)
    rows = read_rows(folder.log_file)
    progress, goodput = _progress(folder, rows), Goodput(rows)
    try:
        found = load_latest(run)
    except CheckpointError:
        found = None
    return progress | {
        "goodput_ratio": goodput.ratio,
        "badput_seconds": goodput.badput,
        "last_checkpoint": None
        if found is None
        else {
            "folder": found.folder.name,
            "step": found.iteration,
            "age_seconds": round(time.time() - (found.folder / "manifest.json").stat().st_mtime, 1),
        },
        "weights_sha256": None if found is None else weights_sha256(found.tensors),
    }


def _progress(folder: RunFolder, rows: list[Row]) -> dict[str, Any]:
    config = folder.read_config()
    valid = [row for row in still_true(rows) if row["event"] == "train"]
    starts = [row for row in rows if row["event"] == "start" and not row.get("again")]
    step = max([row["iteration"] for row in valid[-1:]] + [row["iteration"] for row in starts[-1:]], default=0)
    return {
        "state": _state(rows, last_stall(folder.path)),
        "recipe": config.recipe,
        "epoch": valid[-1]["epoch"] if valid else 0.0,
        "step": step,
        "images_seen": step * 2 * config.optim.update_batch,  # both halves of a batch train
        "restarts": max(0, len(starts) - 1),
    }


def weights_sha256(tensors: dict[str, Tensor]) -> str:
    """Hash of the backbone's and the weight net's tensors in a checkpoint, host tensors by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        if name.startswith(_LEARNED):
            tensor = tensors[name].contiguous()
            digest.update(f"{name} {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}\n".encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def _state(rows: list[Row], stalled_at: float = 0.0) -> str:
    """stalled_at  Unix time at which a rank last told of a stall: it hangs if nothing was logged since"""
    starts = [row for row in rows if row["event"] == "start"]
    if not starts:
        return "dead"
    last, begun = rows[-1], starts[-1]
    if last["event"] == "end":
        return str(last.get("status") or "failed")
    here = begun.get("host") == socket.gethostname()
    if not (_lives(begun) if here else time.time() - max(last["time"], stalled_at) < _SILENT_SECONDS):
        return "dead"
    return "stalled" if stalled_at > last["time"] else "running"


def _lives(start: Row) -> bool:
    """Whether the process that wrote the row still does: its number may have gone to another one."""
    try:
        return abs(psutil.Process(int(start["pid"])).create_time() - float(start["process_began"])) < 1.0
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False
