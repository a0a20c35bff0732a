"""What the outside asks for, a run does after the iteration that it is in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from dataloading.synthetic_loader import SyntheticReader
from trainer.run.checkpoint import load_latest, step_folders
from trainer.run.deadline import Deadline
from trainer.run.signals import STOP, STOPPED, Requests, Start
from trainer.telemetry.jsonl import read_rows

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def requests() -> Iterator[Requests]:
    with closing(Requests()) as requests:
        yield requests


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_stop(requests: Requests, number: signal.Signals) -> None:
    assert requests.poll() == (False, False)
    os.kill(os.getpid(), number)
    assert requests.poll() == (True, False)
    assert requests.poll() == (True, False)


def test_under_nohup_a_lost_terminal_stops_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with closing(Start()), closing(Requests()) as requests:
            os.kill(os.getpid(), signal.SIGHUP)
            assert requests.poll() == (False, False)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_save_once(requests: Requests) -> None:
    os.kill(os.getpid(), signal.SIGUSR2)
    assert requests.poll() == (False, True)
    assert requests.poll() == (False, False)
    requests.ask_to_save()
    assert requests.poll() == (False, True)


def test_a_second_interrupt_ends_at_once(requests: Requests, monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    os.kill(os.getpid(), signal.SIGINT)
    assert codes == []
    os.kill(os.getpid(), signal.SIGINT)
    assert codes == [130]


def test_handlers_are_given_back() -> None:
    watched = (*STOP, signal.SIGUSR2)
    before = [signal.getsignal(number) for number in watched]
    requests = Requests()
    assert [signal.getsignal(number) for number in watched] != before
    requests.close()
    assert [signal.getsignal(number) for number in watched] == before


@pytest.mark.parametrize("number", STOP)
def test_a_start_stops_at_once_until_it_has_begun(number: signal.Signals) -> None:
    with closing(Start()) as start:
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), number)
        assert ended.value.code == STOPPED
        start.begun = True
        os.kill(os.getpid(), number)


@pytest.mark.parametrize(("settings", "code"), [((), 0), (("optim.base_lr=1e18",), 3)], ids=["completed", "diverged"])
def test_a_stop_on_the_way_out_changes_nothing(
    earlybird: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: tuple[str, ...], code: int
) -> None:
    """The loader is closed after the requests have given the signals back."""
    close = SyntheticReader.close

    def told(reader: SyntheticReader) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        close(reader)

    monkeypatch.setattr(SyntheticReader, "close", told)
    outcome = earlybird.train(tmp_path / "run", *settings)
    assert outcome.code == code, outcome.err
    assert read_rows(tmp_path / "run" / "log.jsonl")[-1]["status"] == ("diverged" if code else "completed")


def test_a_deadline_is_for_stops_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is no stop begins nothing, what is closed in time ends nothing."""
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with closing(Requests()):
        for seconds, number, waits in ((0.1, signal.SIGUSR2, 0.3), (60.0, signal.SIGTERM, 0.0)):
            with closing(Deadline(seconds, STOP, STOPPED)):
                os.kill(os.getpid(), number)
                time.sleep(waits)
        assert ended == []
        with closing(Deadline(0.1, STOP, STOPPED)):
            os.kill(os.getpid(), signal.SIGUSR1)
            begun = time.monotonic()
            while not ended and time.monotonic() < begun + 60:
                time.sleep(0.01)
        assert ended == [STOPPED]
    assert signal.set_wakeup_fd(-1) == -1


def test_a_run_saves_and_stops_when_asked(earlybird: Any, image_folder: Path, tmp_path: Path) -> None:
    """A process of its own: SIGUSR2 saves and goes on, SIGTERM saves and ends with 75; the rest gives the same bits."""
    settings = ["run.epochs=1000", "meta.interval=2", "run.log_every=1"]
    run, whole = tmp_path / "run", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", *earlybird.arguments(run, *settings, data=image_folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait(process, lambda: count(run, "train") >= 2)
        assert count(run, "checkpoint") == 0
        process.send_signal(signal.SIGUSR2)
        wait(process, lambda: count(run, "checkpoint") == 1)
        saved = read_rows(run / "log.jsonl")[-1]["iteration"]
        wait(process, lambda: read_rows(run / "log.jsonl")[-1]["iteration"] > saved)
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 75, err
    assert '"status": "preempted"' in out
    assert '"status": "preempted"' in (run / "summary.json").read_text()
    stopped = load_latest(run)
    assert stopped is not None
    assert len(step_folders(run / "checkpoints")) == 2
    assert read_rows(run / "log.jsonl")[-1]["iteration"] == stopped.iteration
    assert count(run, "eval") == 0

    for folder in (run, whole):
        more = ["--max-steps", stopped.iteration + 3]
        assert earlybird.train(folder, *settings, data=image_folder, more=more).json["status"] == "stopped"
    ours, theirs = load_latest(run), load_latest(whole)
    assert ours is not None
    assert theirs is not None
    assert ours.iteration == theirs.iteration == stopped.iteration + 3
    assert all(torch.equal(ours.tensors[name], theirs.tensors[name]) for name in theirs.tensors)


def count(run: Path, event: str) -> int:
    return sum(row["event"] == event for row in read_rows(run / "log.jsonl"))


def wait(process: subprocess.Popen[str], until: Callable[[], bool]) -> None:
    while process.poll() is None and not until():
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()
