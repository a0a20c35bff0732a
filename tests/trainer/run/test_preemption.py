"""A signal to stop, in every phase of a run: a checkpoint, exit code 75, at most the iteration under way is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from dataloading.loader import EvaluationLoader
from dataloading.synthetic_loader import SyntheticReader
from trainer.learning import iteration
from trainer.run import saver, training
from trainer.run.checkpoint import load_latest
from trainer.telemetry.jsonl import read_rows

ROOT = Path(__file__).resolve().parents[3]
WORKER = Path(__file__).with_name("faulty_worker.py")
SETTINGS = ["meta.interval=2", "checkpoint.every=3steps", "run.evaluate_every=1", "run.evaluation_batch=2"]
# phase -> (where it is, name there, the call that is interrupted)
PHASES: dict[str, tuple[Any, str, int]] = {
    "data": (SyntheticReader, "batches", 0),
    "train": (iteration, "train_step", 9),
    "meta": (iteration, "meta_step", 5),
    "snapshot": (saver, "copied", 1),
    "save": (saver, "write_checkpoint", 1),
    "start": (training, "open_dataset", 0),
    "evaluation": (EvaluationLoader, "__iter__", 0),
}


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """The tensors of the run that nothing happened to, once for all tests."""
    return {}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP], ids=lambda number: number.name)
@pytest.mark.parametrize("phase", PHASES)
def test_stopped_in(
    earlybird: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: dict[str, Any],
    phase: str,
    number: signal.Signals,
) -> None:
    if not whole:
        assert earlybird.train(tmp_path / "whole", *SETTINGS).code == 0
        found = load_latest(tmp_path / "whole")
        assert found is not None
        whole |= found.tensors
    run, sent = tmp_path / "run", {}
    place, name, call = PHASES[phase]
    real, calls, progress = getattr(place, name), iter(range(10_000)), {"iteration": 0}
    advance = iteration.average_batch_norm_statistics

    def advanced(buffers: Any) -> None:
        advance(buffers)
        progress["iteration"] += 1

    def strike() -> None:
        if not sent:
            sent.update(at=time.monotonic(), iteration=progress["iteration"])
            os.kill(os.getpid(), number)

    def interrupted(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            strike()
        return real(*arguments, **options)

    def interrupted_between(*arguments: Any) -> Iterator[Any]:
        for place, batch in enumerate(real(*arguments)):
            if place == 1:
                strike()
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr(iteration, "average_batch_norm_statistics", advanced)
        patch.setattr(place, name, interrupted_between if phase in ("data", "evaluation") else interrupted)
        outcome = earlybird.train(run, *SETTINGS)
        took = time.monotonic() - sent["at"]
    assert outcome.code == 75, outcome.err
    assert took < 10, "a cluster gives that long"
    if phase == "start":
        assert not run.exists(), "nothing was begun"
    else:
        assert outcome.json["status"] == "preempted"
        stopped = load_latest(run)
        assert stopped is not None
        assert stopped.passed_over == ()
        assert stopped.iteration - sent["iteration"] in (0, 1), "no more than the iteration under way"
        assert [row["event"] for row in read_rows(run / "log.jsonl")].count("stopped within its grace") == 1
    assert earlybird.train(run, *SETTINGS).json["status"] == "completed"
    found = load_latest(run)
    assert found is not None
    assert all(torch.equal(found.tensors[name], whole[name]) for name in whole)


def test_stopped_at_an_epochs_end(earlybird: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stop comes in the epoch's last iteration: it is saved, and the next start evaluates it before it trains on;
    the one after that, which finds the scores in the log, does not."""
    run, advance = tmp_path / "run", iteration.average_batch_norm_statistics
    calls = iter(range(1, 100))

    def advanced(buffers: Any) -> None:
        advance(buffers)
        if next(calls) in (5, 7):
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(iteration, "average_batch_norm_statistics", advanced)
    assert earlybird.train(run, *SETTINGS).code == 75
    assert earlybird.train(run, *SETTINGS).code == 75
    assert earlybird.train(run, *SETTINGS, more=["--max-steps", 8]).code == 0
    told = [(row["event"], row["iteration"]) for row in read_rows(run / "log.jsonl") if "iteration" in row]
    told = [row for row in told if row[0] in ("start", "eval", "end")]
    assert told == [
        *(("start", 0), ("end", 5)),
        *(("start", 5), ("eval", 5), ("end", 7)),
        *(("start", 7), ("eval", 8), ("end", 8)),
    ]


@pytest.mark.parametrize(
    ("grace", "torchruns"),
    [("3s", {}), ("60s", {"TORCHELASTIC_RUN_ID": "x", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "3"})],
    ids=["cluster", "torchrun"],
)
def test_the_grace_is_never_passed(earlybird: Any, tmp_path: Path, grace: str, torchruns: dict[str, str]) -> None:
    """SIGTERM while native code hangs, so that no handler runs: the process ends all the same, in time, with the code
    that has it started again; and it goes on from the checkpoint before."""
    run, settings = tmp_path / "run", [*SETTINGS, "checkpoint.every=2steps", f"run.grace={grace}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RANK": "0", **torchruns}
    done = subprocess.run(
        [sys.executable, str(WORKER), *earlybird.arguments(run, *settings)],
        env=environment | {"FAULT": f"stuck 0 7 {tmp_path}/came"},
        cwd=ROOT,
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 75, done.stderr
    assert "asked to stop 3 s ago and not done" in done.stderr
    assert "Traceback" not in done.stderr
    assert ("torchrun is less patient than run.grace  grace 3s" in done.stderr) == bool(torchruns)
    outcome = earlybird.train(run, *settings)
    assert (outcome.code, outcome.json["status"]) == (0, "completed"), outcome.err
    assert [row["iteration"] for row in read_rows(run / "log.jsonl") if row["event"] == "goes on from"] == [6]
