"""Checkpoints are written behind training's back: one at a time, told of when they are on disk, errors included."""

from __future__ import annotations

import errno
import json
import os
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.run import saver
from trainer.run.checkpoint import keep_as_best, load_latest, read_checkpoint, step_folders, write_checkpoint
from trainer.run.manifest import CheckpointError
from trainer.run.writer import Writer
from trainer.telemetry.jsonl import read_rows
from trainer.telemetry.telemetry import Telemetry

PATIENCE = 30  # seconds until a test gives up


def events(run: Path, name: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(run / "log.jsonl") if row["event"] == name]


def test_a_write_is_collected_once() -> None:
    gate = threading.Event()

    def write() -> Path:
        assert gate.wait(PATIENCE)
        return Path("folder")

    with closing(Writer()) as writer:
        assert writer.collect(block=True) is None
        writer.start(3, write)
        assert writer.collect(block=False) is None, "it is not done"
        gate.set()
        outcome = writer.collect(block=True)
        assert outcome is not None
        assert (outcome.iteration, outcome.folder, outcome.error) == (3, Path("folder"), None)
        assert writer.collect(block=True) is None


def test_a_write_that_fails_is_an_outcome_and_a_bug_is_raised() -> None:
    def fail(error: Exception) -> Path:
        raise error

    with closing(Writer()) as writer:
        writer.start(1, lambda: fail(CheckpointError("full")))
        outcome = writer.collect(block=True)
        assert outcome is not None
        assert str(outcome.error) == "full"
        writer.start(2, lambda: fail(KeyError("a bug")))
        with pytest.raises(KeyError):
            writer.collect(block=True)


def test_training_goes_on_while_a_checkpoint_is_written(
    earlybird: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write of iteration 2 ends only when iteration 4 was trained; what it holds is iteration 2."""
    run, trained = tmp_path / "run", threading.Event()
    log = Telemetry.train

    def logged(telemetry: Telemetry, row: Any, *more: Any) -> None:
        log(telemetry, row, *more)
        if row["iteration"] == 4:
            trained.set()

    def slow(folder: Path, iteration: int, *rest: Any) -> Path:
        assert iteration != 2 or trained.wait(PATIENCE), "training waited for the write"
        return write_checkpoint(folder, iteration, *rest)

    monkeypatch.setattr(Telemetry, "train", logged)
    monkeypatch.setattr(saver, "write_checkpoint", slow)
    settings = ["checkpoint.every=2steps", "run.log_every=1", "checkpoint.keep=0"]
    assert earlybird.train(run, *settings).code == 0
    assert [row["iteration"] for row in events(run, "checkpoint")] == [2, 4, 6, 8, 9]
    early = read_checkpoint(run / "checkpoints" / "step-0000002")
    assert earlybird.train(tmp_path / "other", *settings, more=["--max-steps", 2]).code == 0
    other = load_latest(tmp_path / "other")
    assert other is not None
    assert all(torch.equal(early.tensors[name], other.tensors[name]) for name in other.tensors)


def test_a_slow_disk_holds_training_back(earlybird: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Never two snapshots at once, none is dropped, and the last is on disk when the run ends."""
    run, writing = tmp_path / "run", threading.Lock()

    def slow(*arguments: Any) -> Path:
        assert writing.acquire(blocking=False), "two writes at once"
        try:
            threading.Event().wait(0.1)
            return write_checkpoint(*arguments)
        finally:
            writing.release()

    monkeypatch.setattr(saver, "write_checkpoint", slow)
    assert earlybird.train(run, "checkpoint.every=1steps", "checkpoint.keep=0").code == 0
    rows = events(run, "checkpoint")
    assert [row["iteration"] for row in rows] == list(range(1, 10))
    assert all(row["write_seconds"] > 0.1 for row in rows)
    assert [folder.name for folder in step_folders(run / "checkpoints")] == [f"step-000000{i}" for i in range(1, 10)]


def test_a_full_disk_costs_a_checkpoint_and_at_the_end_the_run(
    earlybird: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, full = os.fsync, {2, 9}

    def write(folder: Path, iteration: int, *rest: Any) -> Path:
        def fsync(handle: int) -> None:
            if iteration in full:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(handle)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "fsync", fsync)
            return write_checkpoint(folder, iteration, *rest)

    monkeypatch.setattr(saver, "write_checkpoint", write)
    run = tmp_path / "run"
    outcome = earlybird.train(run, "checkpoint.every=2steps")
    assert outcome.code == 2
    assert "checkpoint of step 9 could not be written" in outcome.err
    assert "the last one, step-0000008, is untouched" in outcome.err
    failed = events(run, "checkpoint failed")
    assert {row["iteration"] for row in failed} == {2, 9}  # the last is tried again, and then it is an error
    assert all("No space left on device" in row["reason"] for row in failed)
    full.clear()
    outcome = earlybird.train(run, "checkpoint.every=2steps")
    assert (outcome.code, outcome.json["status"]) == (0, "completed")
    assert events(run, "goes on from")[0]["folder"] == "step-0000008"


def test_what_ends_a_run_waits_for_the_write(earlybird: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in iteration 3 while the checkpoint of 2 is being written: the checkpoint is there all the same."""
    broken = threading.Event()

    def slow(*arguments: Any) -> Path:
        assert broken.wait(PATIENCE)
        return write_checkpoint(*arguments)

    def fail(*_: Any) -> None:
        broken.set()
        raise ValueError("the reader broke")

    monkeypatch.setattr(saver, "write_checkpoint", slow)
    from trainer.run.iterations import Iterations

    log = Iterations.log
    monkeypatch.setattr(Iterations, "log", lambda self, state, reading: (log(self, state, reading), fail()))
    outcome = earlybird.train(tmp_path / "run", "checkpoint.every=2steps", "run.log_every=3")
    assert (outcome.code, "the reader broke" in outcome.err) == (2, True)
    found = load_latest(tmp_path / "run")
    assert found is not None
    assert found.iteration == 2


def test_keeps_the_best(earlybird: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the last exit's scores 10, 30, 20 after the three epochs the second one's checkpoint stays, through a
    restart, and though only the newest is kept otherwise."""
    from trainer.run import validation

    run, scores = tmp_path / "run", iter([10.0, 30.0, 20.0, 40.0])
    score = validation.anytime

    def given(*arguments: Any) -> Any:
        rows = score(*arguments)
        rows[-1]["top1"] = next(scores)
        return rows

    monkeypatch.setattr(validation, "anytime", given)
    settings = ["run.evaluate_every=1", "checkpoint.keep=1", "checkpoint.keep_best=true"]
    kept = []
    for last in (9, 14, 18):  # the epochs end after iterations 5, 9, 14 and 18
        assert earlybird.train(run, *settings, "run.epochs=4", more=["--max-steps", last]).code == 0
        kept.append(sorted(path.name for path in (run / "checkpoints").iterdir() if path.is_dir()))
    assert kept[0] == ["best-step-0000009", "step-0000009"]
    assert kept[1] == ["best-step-0000009", "step-0000014"]
    assert kept[2] == ["best-step-0000018", "step-0000018"]
    best = read_checkpoint(run / "checkpoints" / "best-step-0000018")
    assert best.iteration == 18
    assert json.loads((run / "summary.json").read_text())["exits"][-1]["top1"] == 40.0


def test_what_could_not_be_kept_is_not_the_best(
    earlybird: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 10, 30, 20 and 15 the second one meets a full disk: 20 is then the best, in this process and in the next."""
    from trainer.run import validation

    run, scores, calls = tmp_path / "run", iter([10.0, 30.0, 20.0, 15.0]), iter(range(9))
    score, keep = validation.anytime, saver.keep_as_best

    def given(*arguments: Any) -> Any:
        rows = score(*arguments)
        rows[-1]["top1"] = next(scores)
        return rows

    def kept(*arguments: Any) -> Path:
        if next(calls) == 1:
            raise CheckpointError("No space left on device")
        return keep(*arguments)

    monkeypatch.setattr(validation, "anytime", given)
    monkeypatch.setattr(saver, "keep_as_best", kept)
    settings = ["run.evaluate_every=1", "checkpoint.keep_best=true", "run.epochs=4"]
    for last in (14, 18):
        assert earlybird.train(run, *settings, more=["--max-steps", last]).code == 0
        assert [path.name for path in (run / "checkpoints").glob("best-*")] == ["best-step-0000014"]


def test_keeping_the_best_fails_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The best one before stays where the disk refuses; keeping the same one again changes nothing."""
    tensors = {"model.weight": torch.ones(3)}
    for iteration in (1, 2):
        write_checkpoint(tmp_path, iteration, tensors, {})
    best = keep_as_best(tmp_path, 1)
    assert keep_as_best(tmp_path, 1) == best
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EDQUOT, "Disk quota exceeded")))
        with pytest.raises(CheckpointError, match="Disk quota exceeded"):
            keep_as_best(tmp_path, 2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["best-step-0000001", "latest", "step-0000001", "step-0000002"]
    assert keep_as_best(tmp_path, 2).name == "best-step-0000002"
    assert not best.exists()
    assert read_checkpoint(tmp_path / "checkpoints" / "best-step-0000002").iteration == 2
