"""What hangs is named; what only takes long is left alone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from dataloading.synthetic_loader import SyntheticReader
from trainer.run.health import HealthConfig
from trainer.run.status import run_brief
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


def test_a_stopped_rank_is_named_by_the_others(earlybird: Any, tmp_path: Path, free_port: int) -> None:
    """SIGSTOP of rank 1: rank 0, which waits for it, names it, its metrics are still served, and when the rank goes on
    so does the run."""
    run, port = tmp_path / "run", free_port
    settings = ["health.watchdog_factor=1", "health.watchdog_floor=2s", f"telemetry.port={port}", "run.epochs=400"]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        "-m",
        "--",
        "trainer",
    ]
    with subprocess.Popen(
        [*command, *earlybird.arguments(run, *settings)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as started:
        try:
            wait_for_metric(port, "iteration", 8)
            ranks = {rank_of(child): child for child in psutil.Process(started.pid).children(recursive=True)}
            ranks["1"].suspend()
            told = run / "stalls" / "rank-0.txt"
            deadline = time.monotonic() + 60
            while time.monotonic() < deadline and not (told.exists() and "of 2 ranks" in told.read_text()):
                time.sleep(0.1)
            assert run_brief(run)["state"] == "stalled"
            before = wait_for_metric(port, "iteration", 8)
            assert wait_for_metric(port, "iteration", 8) == before, "it stands still, and tells so"
            assert "rank 1 gives no sign: its process is stopped" in told.read_text()
            assert re.search(r"phase (data|train|meta): rank 0$", told.read_text(), re.MULTILINE)
            assert not (run / "stalls" / "rank-1.txt").exists()
            ranks["1"].resume()
            wait_for_metric(port, "iteration", int(before) + 3)
            assert run_brief(run)["state"] == "running"
        finally:
            os.killpg(started.pid, signal.SIGCONT)
            os.killpg(started.pid, signal.SIGTERM)
            _, said = started.communicate(timeout=60)
    assert "rank 1 gives no sign" in said


def rank_of(process: psutil.Process) -> str:
    return process.environ().get("RANK", "")


def wait_for_metric(port: int, name: str, at_least: int) -> float:
    """The value of `earlybird_NAME` once it is that large, as a scraper sees it."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            found = re.search(rf"^earlybird_{name}(?:{{.*}})? (\S+)$", answer.read().decode(), re.MULTILINE)
            if found and float(found[1]) >= at_least:
                return float(found[1])
        time.sleep(0.1)
    raise AssertionError(f"{name} did not reach {at_least}")


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
