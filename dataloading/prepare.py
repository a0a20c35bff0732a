"""Checking a data set once and packing it, so that training meets no bad image and reads large files."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dataloading.cache import cache_folder, locked, publish_file, sync_folder
from dataloading.datasets.open import open_splits
from dataloading.datasets.prepared import INDEX, MANIFEST, WORK
from dataloading.datasets.splits import Splits
from dataloading.index import FLAG_NAMES, Index
from dataloading.quarantine import to_lines
from dataloading.scan import Meter, ProgressCallback, Source, num_workers
from dataloading.shards import Columns, Limits, pack

_FORMAT = 1
_ROWS_PER_UNIT = 10_000  # of an index without shards: what a killed run loses at most


@dataclass(frozen=True)
class PrepareOptions:
    """
    verify         header: only sizes are read; full: every image is decoded, so truncated files are found
    index_only     write no shards; the index points into the source, which must stay where it is
    shard_bytes    source bytes per shard, about its size
    shortest_side, longest_side  shrink what is larger, pixels (0 = leave as it is)
    quality        JPEG quality of what has to be encoded again
    num_threads    0 = four a core
    """

    verify: Literal["header", "full"] = "full"
    index_only: bool = False
    shard_bytes: int = 512 * 1024 * 1024
    shortest_side: int = 0
    longest_side: int = 0
    quality: int = 95
    num_threads: int = 0

    def __post_init__(self) -> None:
        if self.verify not in ("header", "full"):
            raise ValueError(f"verify is {self.verify!r}; choose header or full")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is {self.quality}; JPEG qualities go from 1 to 100")
        if self.shard_bytes < 1:
            raise ValueError(f"shard_bytes is {self.shard_bytes}; give a positive number of bytes")
        if self.num_threads < 0:
            raise ValueError(f"num_threads is {self.num_threads}; give 0 (four a core) or more")
        for name, side in (("shortest_side", self.shortest_side), ("longest_side", self.longest_side)):
            if side and side < 8:
                raise ValueError(f"{name} is {side}; give 0 (leave as it is) or at least 8 pixels")
            if side and self.index_only:
                raise ValueError(f"{name} is {side} with index_only, which writes no image; set one of them to 0")


@dataclass(frozen=True)
class PrepareResult:
    """bytes: of the prepared images; images_per_second: of those that this run read, not an earlier one."""

    num_images: int
    num_classes: int
    num_quarantined: int
    bytes: int
    seconds: float
    images_per_second: float


def prepare(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    options: PrepareOptions | None = None,
    *,
    progress: ProgressCallback | None = None,
) -> PrepareResult:
    """Check every image of `source` (anything that open_dataset takes) and write a prepared set to `destination`.

    destination  train-*.tar, val-*.tar   plain tars, key.jpg or key.png beside key.cls, the source's order
                 index/                   the splits, memory-mapped by open_dataset
                 quarantine.jsonl         images left out, with the reason; converted.jsonl: images encoded again
                 classes.txt, prepared.json  the manifest, written last
    A killed run goes on where it stopped and ends with the same bytes; a finished one returns at once. The source is
    never written to. Raises ValueError for a bad source, or a destination that holds something else or is full.
    """
    options = options or PrepareOptions()
    started = time.monotonic()
    source, destination = Path(source).expanduser().absolute(), Path(destination).expanduser().absolute()
    if source.is_dir() and destination.resolve().is_relative_to(source.resolve()):
        raise ValueError(f"destination {destination} lies inside the source {source}; choose a folder outside")
    splits = open_splits(source, num_threads=options.num_threads, progress=progress)
    if options.index_only:
        _refuse_cached_containers(splits, source)
    plan = _plan(splits, options)
    num_read = 0
    if not _is_finished(destination, plan):
        try:
            with locked(destination / WORK / "set"):
                if not _is_finished(destination, plan):
                    num_read = _write(splits, source, destination, options, plan, progress)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ValueError(
                    f"no space left in {destination}; free some and run prepare again: it goes on where it stopped"
                ) from error
            raise
    shutil.rmtree(destination / WORK, ignore_errors=True)
    manifest = json.loads((destination / MANIFEST).read_bytes())
    seconds = time.monotonic() - started
    return PrepareResult(
        manifest["num_images"],
        manifest["num_classes"],
        manifest["num_quarantined"],
        manifest["bytes"],
        seconds,
        num_read / seconds,
    )


def _refuse_cached_containers(splits: Splits, source: Path) -> None:
    for container in (*splits.train.containers, *splits.val.containers):
        if Path(container).is_relative_to(cache_folder()):
            raise ValueError(
                f"{source} is compressed and its plain copy lies in the cache, which may be deleted; prepare it "
                "without index_only"
            )


def _plan(splits: Splits, options: PrepareOptions) -> str:
    """Sha-256 of all that the result depends on."""
    settings = {**asdict(options), "num_threads": 0}
    content = [_FORMAT, splits.train.fingerprint, splits.val.fingerprint, settings]
    if options.index_only:
        content += [splits.train.root, *splits.train.containers, *splits.val.containers]
    return hashlib.sha256(json.dumps(content).encode() + to_lines(splits.quarantined)).hexdigest()


def _is_finished(destination: Path, plan: str) -> bool:
    """Raises ValueError where the destination holds anything but a finished or half-finished run of this plan."""
    if not destination.exists() or not any(destination.iterdir()):
        return False
    for name, finished in ((MANIFEST, True), (f"{WORK}/plan.json", False)):
        if (destination / name).is_file():
            if json.loads((destination / name).read_bytes())["plan"] == plan:
                return finished
            raise ValueError(
                f"{destination} holds a set of another source or other options; choose another folder or delete it"
            )
    if [entry.name for entry in destination.iterdir()] == [WORK]:
        return False
    raise ValueError(f"{destination} is not empty and was not made by prepare; choose another folder")


def _write(
    splits: Splits,
    source: Path,
    destination: Path,
    options: PrepareOptions,
    plan: str,
    progress: ProgressCallback | None,
) -> int:
    """Everything that is missing; the manifest last. Returns how many images were read."""
    work = destination / WORK
    publish_file(work / "plan.json", json.dumps({"plan": plan}).encode())
    limits = Limits(options.shortest_side, options.longest_side, options.quality)
    verb = "checking" if options.index_only else "packing"
    meter = Meter(verb, len(splits.train) + len(splits.val), progress)
    prepared, shards, changed, quarantined, num_read = {}, {}, [], list(splits.quarantined), 0
    for split, index in (("train", splits.train), ("val", splits.val)):
        done: list[Columns] = []
        containers: list[str] = []
        with Source(index) as images:
            for number, rows in enumerate(_units(index, options)):
                record = work / f"{split}-{number:06d}.json"
                shard = None if options.index_only else destination / f"{split}-{number:06d}.tar"
                if record.is_file() and (shard is None or shard.is_file()):
                    meter.skip(len(rows))
                elif options.index_only and options.verify == "header":
                    meter.add(len(rows))  # the header scan has just told all
                    Columns(rows=list(rows)).save(record)
                else:
                    pack(
                        images,
                        rows,
                        split,
                        shard,
                        limits,
                        decode=options.verify == "full",
                        threads=num_workers(options.num_threads),
                        meter=meter,
                    ).save(record)
                    num_read += len(rows)
                done.append(Columns.open(record))
                if shard:
                    containers.append(str(shard))
                    shards[shard.name] = shard.stat().st_size
        prepared[split] = _merged(index, done, containers)
        quarantined += [image for columns in done for image in columns.quarantined]
        changed += [change for columns in done for change in columns.changed]
    result = replace(
        splits, train=prepared["train"], val=prepared["val"], quarantined=tuple(quarantined), watched=()
    ).check(str(source))

    temporary = work / INDEX
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    result.save(temporary, destination / INDEX, None if options.index_only else destination)
    sync_folder(temporary)
    shutil.rmtree(destination / INDEX, ignore_errors=True)  # of a run that was killed before its manifest
    os.rename(temporary, destination / INDEX)
    publish_file(destination / "classes.txt", "".join(f"{name}\n" for name in result.train.classes).encode())
    publish_file(destination / "quarantine.jsonl", to_lines(result.quarantined))
    publish_file(destination / "converted.jsonl", "".join(json.dumps(entry) + "\n" for entry in changed).encode())
    manifest: dict[str, Any] = {
        "format": _FORMAT,
        "plan": plan,
        "name": splits.name,
        "source": str(source),
        "options": {**asdict(options), "num_threads": 0},
        "num_images": len(result.train) + len(result.val),
        "num_train": len(result.train),
        "num_val": len(result.val),
        "num_classes": result.train.num_classes,
        "num_quarantined": len(result.quarantined),
        "num_converted": len(changed),
        "bytes": int(result.train.sizes.sum() + result.val.sizes.sum()),
        "unusual": _unusual(splits),
        "shards": shards,
    }
    publish_file(destination / MANIFEST, json.dumps(manifest, indent=1).encode())
    return num_read


def _units(index: Index, options: PrepareOptions) -> list[range]:
    """Consecutive rows that are written, and done again after a kill, as one: a shard's worth."""
    if options.index_only:
        first_rows = list(range(0, len(index), _ROWS_PER_UNIT))
    else:
        shard_of_row = (np.cumsum(index.sizes) - index.sizes) // options.shard_bytes
        first_rows = [0, *(np.flatnonzero(np.diff(shard_of_row)) + 1).tolist()]
    return [range(start, end) for start, end in zip(first_rows, [*first_rows[1:], len(index)], strict=True)]


def _merged(index: Index, done: list[Columns], containers: list[str]) -> Index:
    """The split's index with the shards' columns; without shards, the source's own rows that were good."""

    def column(name: str, like: np.ndarray) -> np.ndarray:
        return np.concatenate([np.asarray(getattr(columns, name), dtype=like.dtype) for columns in done])

    kept = index.subset(column("rows", index.offsets))
    if not containers:
        return kept
    return replace(
        kept,
        heights=column("heights", index.heights),
        widths=column("widths", index.widths),
        containers=tuple(containers),
        container=np.repeat(np.arange(len(done), dtype=np.int32), [len(columns.rows) for columns in done]),
        offsets=column("offsets", index.offsets),
        sizes=column("sizes", index.sizes),
        flags=column("flags", index.flags),
        root="",
    )


def _unusual(splits: Splits) -> dict[str, int]:
    """How many of the source's usable images are of each unusual kind."""
    flags = np.concatenate([splits.train.flags, splits.val.flags])
    return {name: int(np.count_nonzero(flags & bit)) for bit, name in FLAG_NAMES.items() if np.any(flags & bit)}
