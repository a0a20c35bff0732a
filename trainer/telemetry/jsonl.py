"""JSON that any program reads, and the run's log: one object a line, appended and flushed, readable after any crash."""

from __future__ import annotations

import json
import logging
import math
import os
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

Row = dict[str, Any]


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON has no NaN and no infinity, which Python writes all the same: they become null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


class JsonLog:
    """Appends rows to `path`; each carries its `event` and the Unix `time`. Numbers that are not finite become null."""

    def __init__(self, path: Path) -> None:
        """OSError where the file cannot be opened for appending."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._handle: int | None = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        self._torn = _ends_torn(path)

    def write(self, event: str, **fields: Any) -> Row:
        """Append one row and return it. A full disk costs the line, with a warning, and not the run."""
        assert self._handle is not None, "the log is closed"
        row = {"event": event, "time": time.time(), **_finite(fields)}
        line = ("\n" if self._torn else "") + json.dumps(row) + "\n"
        try:
            written = os.write(self._handle, line.encode())
            self._torn = written < len(line.encode())
        except OSError as error:
            logger.warning("%s: a %s row could not be written (%s)", self.path, event, error.strerror)
        return row

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def read_rows(path: Path) -> list[Row]:
    """Every row ever written, in order; a line that a crash tore is left out. No file: no rows."""
    rows = []
    if path.exists():
        for line in path.read_bytes().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and "event" in row:
                rows.append(row)
    return rows


def read_log(path: Path) -> list[Row]:
    """The rows of a file that are still true."""
    return still_true(read_rows(path))


def still_true(rows: Iterable[Row]) -> list[Row]:
    """What a restart did again is left out, every start and end stays."""
    kept: list[Row] = []
    for row in rows:
        if row["event"] == "start":
            kept = [old for old in kept if old["event"] in ("start", "end") or _iteration(old) <= row["iteration"]]
        kept.append(row)
    return kept


def _iteration(row: Row) -> float:
    return row.get("iteration", -math.inf)


def _ends_torn(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
