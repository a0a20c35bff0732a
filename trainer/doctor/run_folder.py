"""The run folder: whether a checkpoint can be written there as the trainer writes it, how fast, and how many fit."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from trainer.config import Config
from trainer.doctor.finding import Finding
from trainer.models.cost import exit_costs
from trainer.run.manifest import flush_folder, write_file

_SAMPLE_BYTES = 64 << 20
_SLOW_SECONDS = 60.0  # of a checkpoint: longer than most clusters leave a job that they stop


def run_folder(path: Path, config: Config, num_classes: int | None) -> Iterator[Finding]:
    """In `path`, or in the nearest folder above it that is there; nothing stays behind.

    num_classes  of the data; None where that is not known: the size of a checkpoint is then not told
    """
    above = path
    while not above.exists():
        above = above.parent
    if not above.is_dir():
        yield Finding("run folder", "fail", f"{above} is a file", "give --run-folder another folder")
        return
    try:
        took = _write(above)
    except OSError as error:
        remedy = "give --run-folder a folder that this user may write, with space left"
        yield Finding("run folder", "fail", f"{above}: {error.strerror or error}", remedy)
        return
    rate, free = _SAMPLE_BYTES / took, shutil.disk_usage(above).free
    said = f"{above.absolute()}: 64 MiB written, flushed and renamed at {rate / 1e6:,.0f} MB/s"
    yield Finding("run folder", "pass", said, values={"bytes_per_second": rate})
    if num_classes is None:
        yield Finding("space", "pass", f"{free / 1e9:,.0f} GB free")
        return
    yield space(free, checkpoint_bytes(config, num_classes), config, rate)


def checkpoint_bytes(config: Config, num_classes: int) -> int:
    """Of one checkpoint, about: weights and momentum in float32; statistics and the weight net are small."""
    return 8 * exit_costs(config.model, num_classes, config.data.image_size)[-1].params


def space(free: int, one: int, config: Config, rate: float) -> Finding:
    """What the run keeps, and one that is being written, beside what is free; `rate` in bytes a second."""
    kept = (config.checkpoint.keep or config.run.epochs) + config.checkpoint.keep_best + 1
    said = f"{free / 1e9:,.1f} GB free; {kept} checkpoints of {one / 1e6:,.1f} MB are kept or under way"
    values = {"free_bytes": free, "checkpoint_bytes": one, "checkpoints": kept}
    if free < kept * one:
        remedy = "remove old runs, lower checkpoint.keep, or give --run-folder another disk"
        return Finding("space", "fail", said, remedy, values)
    if one / rate > _SLOW_SECONDS:
        remedy = f"a faster disk, or run.grace above {one / rate:.0f}s (and as much from the cluster)"
        return Finding("space", "warn", f"{said}; one takes {one / rate:.0f} s to write", remedy, values)
    return Finding("space", "pass", said, values=values)


def _write(folder: Path) -> float:
    """Seconds of a flushed write and a rename, read back whole; OSError where the disk refuses."""
    block = os.urandom(1 << 20)  # which no file system squeezes
    with tempfile.TemporaryDirectory(prefix=".earlybird-doctor-", dir=folder) as name:
        written, renamed = Path(name) / "tensors.tmp", Path(name) / "tensors"
        began = time.perf_counter()
        write_file(written, [block] * (_SAMPLE_BYTES >> 20))
        written.replace(renamed)
        flush_folder(Path(name))
        took = time.perf_counter() - began
        if renamed.stat().st_size != _SAMPLE_BYTES or renamed.read_bytes()[-(1 << 20) :] != block:
            raise OSError("what was written came back changed")
    return took
