"""A set that `earlybird prepare` wrote: an index that is opened as it is, and the shards it points into."""

from __future__ import annotations

import json
import os
from pathlib import Path

from dataloading.datasets.splits import Splits

MANIFEST = "prepared.json"  # written last: where it is, the set is whole
WORK = ".partial"  # what a run that is not finished keeps
INDEX = "index"


def is_prepared(path: Path) -> bool:
    return (path / MANIFEST).is_file() or (path / WORK).is_dir()


def read_prepared(path: Path) -> Splits:
    """Raises ValueError where prepare has not finished, or a shard is missing or not as large as it was written."""
    if not (path / MANIFEST).is_file():
        raise ValueError(f"{path} is half prepared; run prepare again, it goes on where it stopped")
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        shards = {str(name): int(size) for name, size in dict(manifest["shards"]).items()}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path / MANIFEST} cannot be read ({error!r}); prepare the set again") from error
    for name, size in shards.items():
        file = path / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{path / MANIFEST} names {name!r}, which is not inside {path}: prepare the set again")
        if not file.is_file() or file.stat().st_size != size:
            raise ValueError(f"{file} is missing or not {size:,} bytes long; copy it again or prepare the set again")
    splits = Splits.open(path / INDEX)
    if shards:
        _check_inside(path, splits, {os.path.normpath(path.absolute() / name) for name in shards})
    return splits


def _check_inside(path: Path, splits: Splits, shards: set[str]) -> None:
    """A packed set reads its own shards and nothing else, whoever made it."""
    for index in (splits.train, splits.val):
        outside = sorted(set(index.containers) - shards)
        if outside or (index.container < 0).any():
            what = outside[0] if outside else "files of their own"
            raise ValueError(f"the index of {path} points to {what}, not to its shards: prepare the set again")
