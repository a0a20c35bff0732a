from __future__ import annotations

import json
import logging
import os
import resource
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.telemetry.jsonl import JsonLog, read_log, read_rows, to_json


def _write(path: Path, *rows: tuple[str, int]) -> None:
    log = JsonLog(path)
    for event, iteration in rows:
        log.write(event, iteration=iteration)
    log.close()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 400))
def test_any_torn_end_costs_at_most_its_own_line(size: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.jsonl"
        _write(path, *[("train", i) for i in range(5)])
        os.truncate(path, min(size, path.stat().st_size))
        whole = path.read_bytes().count(b"\n") + (
            not path.read_bytes().endswith(b"\n") and path.read_bytes()[-1:] == b"}"
        )
        _write(path, ("train", 99))
        assert [row["iteration"] for row in read_rows(path)] == [*range(whole), 99]


def test_restarts_keep_only_what_still_holds(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    assert read_log(path) == []
    _write(path, ("start", 0), ("train", 10), ("eval", 10), ("train", 20), ("end", 20))
    _write(path, ("start", 10), ("train", 20), ("train", 30))
    _write(path, ("start", 20), ("train", 30))
    rows = [(row["event"], row["iteration"]) for row in read_log(path)]
    assert rows == [
        *[("start", 0), ("train", 10), ("eval", 10), ("end", 20)],
        *[("start", 10), ("train", 20)],
        *[("start", 20), ("train", 30)],
    ]


def test_what_is_not_finite_is_null() -> None:
    values = {"loss": [float("nan"), 1.5], "best": (float("inf"), {"left": -float("inf")}), "number": 3, "name": "NaN"}
    assert json.loads(to_json(values), parse_constant=pytest.fail) == {
        "loss": [None, 1.5],
        "best": [None, {"left": None}],
        "number": 3,
        "name": "NaN",
    }


def test_a_full_disk_costs_a_line_and_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = JsonLog(tmp_path / "log.jsonl")
    log.write("train", iteration=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 20, hard))
    try:
        with caplog.at_level(logging.WARNING):
            log.write("train", iteration=2)  # the first 20 bytes fit
            log.write("train", iteration=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.write("train", iteration=4)
    log.close()
    assert [row["iteration"] for row in read_rows(log.path)] == [1, 4]
    assert "could not be written" in caplog.text
