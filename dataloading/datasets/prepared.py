"""A set that `earlybird prepare` wrote: an index that is opened as it is, and the shards it points into."""

from __future__ import annotations

import json
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
        shards = dict(manifest["shards"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path / MANIFEST} cannot be read ({error}); prepare the set again") from error
    for name, size in shards.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            raise ValueError(f"{file} is missing or not {size:,} bytes long; copy it again or prepare the set again")
    return Splits.open(path / INDEX)
