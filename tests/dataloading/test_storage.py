"""Bytes of rows: views of the map, files of their own, and what is not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dataloading.header import BadImageError
from dataloading.index import Index
from dataloading.storage import Storage


def _index(folder: Path) -> Index:
    """Rows 0 to 2 in a container (the last cut off), 3 to 5 files (the last two empty and missing)."""
    (folder / "shard").write_bytes(b"-first-second-thi")
    (folder / "own").write_bytes(b"alone")
    (folder / "empty").write_bytes(b"")
    return Index.build(
        "a",
        np.zeros(6),
        ["first", "second", "third", "own", "empty", "missing"],
        containers=[str(folder / "shard")],
        container=[0, 0, 0, -1, -1, -1],
        offsets=[1, 7, 14, 0, 0, 0],
        sizes=[5, 6, 5, 5, 0, 7],
        root=str(folder),
    )


def test_rows_come_in_the_order_asked_for(tmp_path: Path) -> None:
    storage = Storage(_index(tmp_path), 2)
    got = storage.read(np.array([3, 1, 5, 0, 2, 4, 1]))
    assert [data.tobytes() if isinstance(data, np.ndarray) else data.reason for data in got] == [
        b"alone",
        b"second",
        "unreadable",
        b"first",
        "truncated",
        "zero_bytes",
        b"second",
    ]
    storage.close()


def test_containers_are_not_copied_and_outlive_the_storage(tmp_path: Path) -> None:
    storage = Storage(_index(tmp_path))
    storage.advise(np.arange(6))  # what is not there is no error yet
    first, second = storage.read_one(0), storage.read_one(1)
    assert second.ctypes.data - first.ctypes.data == 6
    assert not first.flags.owndata
    storage.close()
    del storage
    assert first.tobytes() == b"first"


def test_a_missing_container_is_named(tmp_path: Path) -> None:
    index = _index(tmp_path)
    (tmp_path / "shard").unlink()
    with pytest.raises(ValueError, match=r"shard cannot be mapped .*prepare the set again"):
        Storage(index).read_one(0)
    with pytest.raises(BadImageError, match="No such file"):
        Storage(index).read_one(5)
