"""Checkpoints: one folder each, complete or absent, verified before use.

    checkpoints/step-0000123/tensors.safetensors
    checkpoints/step-0000123/manifest.json        size and sha-256 of every file, versions, the caller's values
    checkpoints/latest                            name of the newest folder, for people and tools

A checkpoint is written under a temporary name, flushed to disk and renamed: killing the process, or the machine, at any
instant leaves every earlier checkpoint as it was and never a half-written one under a step's name. Nothing is
overwritten: the same step saved again gets a folder of its own. A folder under any other name (`mv step-0000123 best`)
is never touched.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from trainer.run.interval import Interval
from trainer.run.manifest import CheckpointError, flush_folder, read_file, read_manifest, write_file, write_manifest
from trainer.run.tensors_file import pieces

__all__ = [
    "Checkpoint",
    "CheckpointConfig",
    "CheckpointError",
    "keep_as_best",
    "load_latest",
    "read_checkpoint",
    "save_checkpoint",
    "snapshot",
    "step_folders",
    "write_checkpoint",
]

logger = logging.getLogger(__name__)

TENSORS, LATEST = "tensors.safetensors", "latest"
TEMPORARY, PASSED_OVER, BEST = ".writing-", "passed-over-", "best-"
_STEP = re.compile(r"step-(\d{7,})(?:-(\d+))?")


@dataclass(frozen=True)
class CheckpointConfig:
    """Group `checkpoint`.

    every  how often to save: epochs, steps (iterations) or a time, as in 1epoch, 500steps, 10min
    keep   how many of the newest checkpoints stay; 0 keeps all
    keep_best  keep the one with the best validation top-1 of the last exit too, as the folder best-step-N
    """

    every: str = "1epoch"
    keep: int = 3
    keep_best: bool = False

    def __post_init__(self) -> None:
        Interval.parse(self.every, "checkpoint.every")
        if self.keep < 0:
            raise ValueError(f"checkpoint.keep is {self.keep}; it must be at least 1, or 0 to keep all")

    @property
    def interval(self) -> Interval:
        return Interval.parse(self.every, "checkpoint.every")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint, on the host.

    iteration    iterations done when it was taken
    tensors      by the names they were saved under, contiguous, in their dtypes
    meta         the caller's JSON values; versions are those of the program that wrote it
    passed_over  (folder name, reason) of every newer checkpoint that is not whole
    """

    folder: Path
    iteration: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]
    versions: dict[str, str]
    passed_over: tuple[tuple[str, str], ...] = ()


def snapshot(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the host that later steps do not change: contiguous, each with memory of its own.

    Values and dtypes survive. A memory format does not: load by copying into the tensors of a built net, which keep
    their own. Waits for the device, once.
    """
    return {
        name: tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }


def save_checkpoint(
    run_folder: Path, iteration: int, tensors: dict[str, Tensor], meta: dict[str, Any], keep: int = 3
) -> Path:
    """Snapshot `tensors` and write them as the run's newest checkpoint; its folder. One process calls this."""
    return write_checkpoint(run_folder, iteration, snapshot(tensors), meta, keep)


def write_checkpoint(
    run_folder: Path, iteration: int, tensors: dict[str, Tensor], meta: dict[str, Any], keep: int = 3
) -> Path:
    """Write a snapshot as checkpoint of `iteration`, point `latest` at it, and remove the oldest beyond `keep`.

    meta  JSON values: configuration, progress, data fingerprint, optimizer scalars
    Raises CheckpointError where the disk refuses; nothing partial is left and earlier checkpoints are untouched.
    """
    parent = Path(run_folder) / "checkpoints"
    last = [folder.name for folder in step_folders(parent)[-1:]]
    temporary = parent / f"{TEMPORARY}step-{iteration:07}-{os.getpid()}"
    try:
        if not parent.is_dir():
            parent.mkdir(parents=True)
            flush_folder(parent.parent)
        _remove_leftovers(parent)
        temporary.mkdir()
        files = {TENSORS: write_file(temporary / TENSORS, pieces(tensors))}
        write_manifest(temporary, iteration, files, meta)
        folder = _unused_name(parent, iteration)
        temporary.rename(folder)
        flush_folder(parent)
        _point_latest(parent, folder.name)
    except OSError as error:
        _remove_leftovers(parent)
        raise CheckpointError(_cannot_write(parent, iteration, _size(tensors), last, error)) from error
    _tidy(parent, folder, keep)
    return folder


def load_latest(run_folder: Path, refused: Mapping[str, str] | None = None) -> Checkpoint | None:
    """The newest whole checkpoint, or None where the run has none; damaged newer ones are listed in `passed_over`.

    refused  reasons, by the names of folders that are passed over unread
    Raises CheckpointError where there are checkpoints but not one is whole.
    """
    passed_over: list[tuple[str, str]] = []
    for folder in reversed(step_folders(Path(run_folder) / "checkpoints")):
        if refused and folder.name in refused:
            passed_over.append((folder.name, refused[folder.name]))
            continue
        try:
            found = read_checkpoint(folder)
        except CheckpointError as error:
            passed_over.append((folder.name, str(error)))
            continue
        return Checkpoint(found.folder, found.iteration, found.tensors, found.meta, found.versions, tuple(passed_over))
    if passed_over:
        reasons = "; ".join(reason for _, reason in passed_over)
        raise CheckpointError(
            f"{run_folder} has no whole checkpoint left ({reasons}); restore one from a backup, or delete "
            f"{Path(run_folder) / 'checkpoints'} to start over"
        )
    return None


def keep_as_best(run_folder: Path, iteration: int) -> Path:
    """Keep the newest checkpoint of `iteration` under a name that is never pruned, instead of the best one before; its
    folder. Its files are linked, not copied: they take no room of their own while both are there.

    Raises CheckpointError where the disk refuses.
    """
    parent = Path(run_folder) / "checkpoints"
    found = [folder for folder in step_folders(parent) if _age(folder)[0] == iteration]
    if not found:
        raise CheckpointError(f"{parent} has no checkpoint of iteration {iteration} any more to keep as the best one")
    source = found[-1]
    best, temporary = parent / f"{BEST}{source.name}", parent / f"{TEMPORARY}{BEST}{source.name}"
    if best.is_dir():
        return best
    try:
        temporary.mkdir()
        for file in source.iterdir():
            os.link(file, temporary / file.name)
        flush_folder(temporary)
        others = list(parent.glob(f"{BEST}step-*"))
        temporary.rename(best)
        flush_folder(parent)
        for other in others:
            shutil.rmtree(other.rename(parent / f"{TEMPORARY}{other.name}-old"))
    except OSError as error:
        _remove_leftovers(parent)
        raise CheckpointError(f"{source} could not be kept as {best.name}: {error.strerror or error}") from error
    return best


def read_checkpoint(folder: Path) -> Checkpoint:
    """One checkpoint, every byte verified against its manifest; CheckpointError says what is wrong."""
    folder = Path(folder)
    content = read_manifest(folder)
    payloads = {name: read_file(folder / name, **entry) for name, entry in content["files"].items()}
    try:
        tensors = safetensors.torch.load(payloads[TENSORS])
    except (SafetensorError, KeyError) as error:
        raise CheckpointError(f"{folder / TENSORS} is not readable ({error})") from error
    return Checkpoint(folder, content["iteration"], tensors, content["meta"], content["versions"])


def step_folders(parent: Path) -> list[Path]:
    """Checkpoint folders of a run, oldest first, whole or not."""
    found = [path for path in parent.glob("step-*") if _STEP.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=_age)


def _age(folder: Path) -> tuple[int, int]:
    match = _STEP.fullmatch(folder.name)
    assert match is not None
    return int(match[1]), int(match[2] or 1)


def _unused_name(parent: Path, iteration: int) -> Path:
    copies = [copy for step, copy in map(_age, step_folders(parent)) if step == iteration]
    return parent / f"step-{iteration:07}{f'-{max(copies) + 1}' if copies else ''}"


def _point_latest(parent: Path, name: str) -> None:
    temporary = parent / f"{TEMPORARY}{LATEST}"
    write_file(temporary, [f"{name}\n".encode()])
    temporary.replace(parent / LATEST)
    flush_folder(parent)


def _tidy(parent: Path, newest: Path, keep: int) -> None:
    """Set aside what is of a later step (it was passed over, or training would be past it) and remove the oldest
    beyond `keep`. What cannot be moved stays, with a warning: the new checkpoint is safe either way."""
    folders = step_folders(parent)
    place = folders.index(newest) + 1
    try:
        for folder in folders[place:]:
            folder.rename(parent / f"{PASSED_OVER}{folder.name}-{time.time_ns()}")
        for folder in folders[: max(0, place - keep)] if keep else []:
            # Renamed first: a folder that is being deleted must not look like a damaged checkpoint.
            shutil.rmtree(folder.rename(parent / f"{TEMPORARY}{folder.name}-old"))
    except OSError as error:
        logger.warning("old checkpoints in %s could not be removed (%s): the disk may fill", parent, error)


def _remove_leftovers(parent: Path) -> None:
    for path in parent.glob(f"{TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _size(tensors: dict[str, Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def _cannot_write(parent: Path, iteration: int, size: int, last: list[str], error: OSError) -> str:
    kept = f"the last one, {last[0]}, is untouched" if last else "the run has no earlier one"
    try:
        free = f", {shutil.disk_usage(parent).free / 1e6:.0f} MB are free"
    except OSError:
        free = ""
    return (
        f"checkpoint of step {iteration} could not be written to {parent}: {error.strerror or error} (it takes "
        f"{size / 1e6:.0f} MB{free}); {kept}. Free space there, or give --run a folder on another disk"
    )
