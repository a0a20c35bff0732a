"""What hangs is named; what only takes long is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from dataloading.synthetic_loader import SyntheticReader
from trainer.run.health import HealthConfig
from trainer.run.watchdog import LEAST, PATIENCE, Watchdog
from trainer.telemetry.jsonl import read_rows

ROOT = Path(__file__).resolve().parents[3]


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 60
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.02)


def test_a_run_whose_reader_hangs(earlybird: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In iteration 8, until the watchdog has told: rank, phase, stack; once; and the run's log says it afterwards."""
    run = tmp_path / "run"
    told = run / "stalls" / "rank-0.txt"
    batches = SyntheticReader.batches

    def hanging(reader: SyntheticReader, plans: Any) -> Any:
        for number, batch in enumerate(batches(reader, plans)):
            if number == 7:
                wait_for(told)
                time.sleep(0.6)  # longer than it takes to look again
            yield batch

    monkeypatch.setattr(SyntheticReader, "batches", hanging)
    outcome = earlybird.train(run, "health.watchdog_factor=1", "health.watchdog_floor=1s")
    assert outcome.code == 0, outcome.err
    text = told.read_text()
    assert text.count("no step ended") == 1
    assert "rank 0: no step ended" in text
    assert "phase data" in text
    assert "in wait_for" in text
    assert "phase data" in outcome.err
    (row,) = [row for row in read_rows(run / "log.jsonl") if row["event"] == "stalled"]
    assert (row["phase"], row["iteration"]) == ("data", 9)


def test_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many times the median, at least the floor; before there is a median, far more."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watchdog = Watchdog(HealthConfig(watchdog_factor=0), tmp_path, 0, {})
    watchdog._factor = 5.0
    for _ in range(LEAST):
        assert watchdog.limit == PATIENCE * 60
        now[0] += 20
        watchdog.beat()
    assert watchdog.limit == 100
    for _ in range(200):
        now[0] += 2
        watchdog.beat()
    assert watchdog.limit == 60


HOLDS_THE_LOCK = """
import ctypes
import sys
from pathlib import Path
from trainer.run.health import HealthConfig
from trainer.run.watchdog import Watchdog

watchdog = Watchdog(HealthConfig(watchdog_factor=1, watchdog_floor="1s"), Path(sys.argv[1]), 0, {})
for _ in range(9):
    watchdog.beat()
import time
time.sleep(0.5)
ctypes.PyDLL(None).sleep(4)  # PyDLL keeps Python's lock
watchdog.close()
"""


def test_a_thread_that_holds_pythons_lock(tmp_path: Path) -> None:
    """No Python thread runs: the stacks come all the same."""
    done = subprocess.run(
        [sys.executable, "-c", HOLDS_THE_LOCK, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Timeout (0:00:03)!" in done.stderr
    assert 'File "<string>", line 13 in <module>' in done.stderr


def test_off(tmp_path: Path) -> None:
    with closing(Watchdog(HealthConfig(watchdog_factor=0), tmp_path, 0, {})) as watchdog:
        watchdog.beat()
        assert watchdog.stalls() == []
    assert not list(tmp_path.iterdir())
