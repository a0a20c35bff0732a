"""Two ranks under torchrun, one of them in trouble: all act alike, nothing good is lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dataloading.loader import EvaluationLoader
from trainer.learning.optim import OptimConfig
from trainer.run.checkpoint import load_latest
from trainer.run.ledger import read_ledger, unequal
from trainer.telemetry.jsonl import read_rows

ROOT = Path(__file__).resolve().parents[3]
WORKER = Path(__file__).with_name("faulty_worker.py")
SETTINGS = ["meta.interval=2", "checkpoint.every=2steps", "checkpoint.keep=0", "optim.micro_batch=4", "run.log_every=1"]
Start = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def start(earlybird: Any, image_folder: Path, tmp_path: Path) -> Start:
    """(run folder, fault, settings, torchrun's options, last iteration) -> two ranks of it, ended."""

    def started(run: Path, fault: str, *settings: str, torchrun: tuple[str, ...] = (), last: int = 0) -> Any:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *torchrun]
        arguments = earlybird.arguments(run, *SETTINGS, *settings, data=image_folder)
        return subprocess.run(
            [*command, "--", str(WORKER), *arguments, "--max-steps", str(last)],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "FAULT": f"{fault} {tmp_path}/came"},
            cwd=ROOT,
            timeout=300,
            capture_output=True,
            text=True,
        )

    return started


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    found = load_latest(run)
    assert found is not None
    assert found.passed_over == ()
    return found.tensors


def events(run: Path, name: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(run / "log.jsonl") if row["event"] == name]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run that nothing happened to but that its second rank was slow, once for all tests."""
    return {"run": tmp_path_factory.mktemp("whole") / "run"}


def unbroken(whole: dict[str, Path], start: Start) -> dict[str, torch.Tensor]:
    run = whole["run"]
    if not run.exists():
        done = start(run, "slow 1 0", "run.record_ids=true")
        assert done.returncode == 0, done.stderr
    return tensors_of(run)


def test_a_lost_rank(start: Start, whole: dict[str, Path], tmp_path: Path) -> None:
    """SIGKILL of one in the middle of an iteration: torchrun starts both again, from the last checkpoint, and the
    weights at the end have the bits of a run that nothing happened to."""
    run = tmp_path / "run"
    done = start(run, "kill 1 7", torchrun=("--max-restarts=1",))
    assert done.returncode == 0, done.stderr
    assert "rank 0 of 2 lost another rank" in done.stderr
    assert "Traceback" not in done.stderr.split("lost another rank")[0].rsplit("earlybird:", 1)[-1]
    calls = json.loads((run / "flight-recorder" / "rank-0.json").read_text())["entries"]
    assert any("gloo:" in call["profiling_name"] for call in calls)
    starts = events(run, "start")
    assert len(starts) == 2
    assert starts[0]["iteration"] == 0
    assert starts[1]["iteration"] in (4, 6)  # the write of 6 may have been under way
    assert events(run, "goes on from")[0]["iteration"] == starts[1]["iteration"]
    ours, theirs = tensors_of(run), unbroken(whole, start)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_slow_rank_is_named(start: Start, whole: dict[str, Path]) -> None:
    """Both end every iteration together, and still the log says which one the other waits for."""
    unbroken(whole, start)
    (row,) = events(whole["run"], "straggler")
    assert row["rank"] == 1
    scores = [row["straggler_scores"] for row in events(whole["run"], "train")]
    assert all(mine < 1 < theirs for mine, theirs in scores[1:])


def test_again_with_fewer_ranks(
    start: Start, earlybird: Any, image_folder: Path, whole: dict[str, Path], tmp_path: Path
) -> None:
    """Two ranks for five iterations, then one alone in twice as many parts: every iteration has the images that it had
    with two throughout, none is lost, none comes twice, and every loss is the same up to the order of sums."""
    run = tmp_path / "run"
    settings = [*SETTINGS, "run.record_ids=true"]
    assert start(run, "none 0 0", "run.record_ids=true", last=5).returncode == 0
    outcome = earlybird.train(run, *settings, data=image_folder)
    assert (outcome.code, outcome.json["iterations"]) == (0, 9), outcome.err
    assert [row["world_size"] for row in events(run, "start")] == [2, 1]
    unbroken(whole, start)
    ours, theirs = read_ledger(run), read_ledger(whole["run"])
    assert unequal(ours, 65, 16) == ""
    assert {n: sorted(ids) for n, ids in ours.items()} == {n: sorted(ids) for n, ids in theirs.items()}
    losses = [[row["loss"] for row in events(folder, "train")] for folder in (run, whole["run"])]
    assert losses[0][:5] == losses[1][:5]
    assert np.allclose(losses[0], losses[1], rtol=1e-4), "the same groups of four images are normalised together"


def test_nan_on_one_rank_stops_both_before_the_update(start: Start, whole: dict[str, Path], tmp_path: Path) -> None:
    """In iteration 6; the log step comes after iteration 10, a checkpoint falls due after 8. The restart by torchrun
    trains nothing, the next start does."""
    run = tmp_path / "run"
    done = start(run, "nan 1 6", "run.log_every=10", torchrun=("--max-restarts=1",))
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("earlybird: training diverged") == 2, done.stderr
    assert "earlybird: not started again: training diverged" in done.stderr
    assert len(events(run, "start")) == 1
    assert "1 updates were left out, 1 in a row; first on rank 1, iteration 6, exits 1, 2" in done.stderr
    assert re.search(r"images \d+, .*\) after iteration 8", done.stderr), done.stderr
    (row,) = events(run, "not finite")
    assert row["where"].startswith("rank 1, iteration 6, exits 1, 2")
    assert start(run, "none 0 0").returncode == 0
    # Iteration 8 was not saved, 6 was not touched, and from there all goes on as if nothing had been.
    assert [row["iteration"] for row in events(run, "goes on from")] == [6]
    ours, theirs = tensors_of(run), unbroken(whole, start)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_preempted_while_it_evaluates(start: Start, whole: dict[str, Path], tmp_path: Path) -> None:
    """SIGTERM comes to one rank in the evaluation after iteration 5: both leave it, the state is safe, code 75."""
    run = tmp_path / "run"
    settings = ("run.evaluate_every=1", "run.evaluation_batch=1")
    done = start(run, "term 1 5", *settings, torchrun=("--max-restarts=1",))
    assert done.returncode == 0, done.stderr
    assert [row["status"] for row in events(run, "end")] == ["preempted", "completed"]
    assert [row["iteration"] for row in events(run, "evaluation given up")] == [5]
    assert [row["iteration"] for row in events(run, "eval")] == [5, 9], "the one that was given up is made up for"
    assert [row["iteration"] for row in events(run, "goes on from")] == [5]
    ours, theirs = tensors_of(run), unbroken(whole, start)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_preempted_while_it_evaluates_real_images(
    earlybird: Any, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One rank, the images decoded ahead: SIGTERM at the second of seven batches."""
    run, seen = tmp_path / "run", []
    batches = EvaluationLoader.__iter__

    def terminated(loader: EvaluationLoader) -> Any:
        for batch in batches(loader):
            seen.append(len(batch))
            if len(seen) == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(EvaluationLoader, "__iter__", terminated)
    settings = ["run.evaluate_every=1", "run.evaluation_batch=3", "run.grace=10min"]
    outcome = earlybird.train(run, *settings, data=image_folder)
    assert (outcome.code, outcome.json["status"]) == (75, "preempted"), outcome.err
    assert len(seen) == 2
    found = load_latest(run)
    assert found is not None
    assert found.iteration == 5
    (row,) = events(run, "stopped within its grace")
    assert row["grace"] == "600s"
    assert row["seconds"] < 600
    assert earlybird.train(run, *settings, data=image_folder).json["status"] == "completed"
    assert len(seen) == 2 + 7 + 7, "what was given up is made up for"


@given(
    share=st.integers(1, 512),
    world_size=st.integers(1, 64),
    micro_batch=st.integers(1, 600),
)
def test_micro_batches_keep_the_memory_of_a_rank(share: int, world_size: int, micro_batch: int) -> None:
    """Whatever the number of ranks: as few parts as fit, and equal ones."""
    optim = OptimConfig(share * world_size, micro_batch=micro_batch)
    parts = optim.micro_batches(world_size)
    assert share % parts == 0
    assert share // parts <= micro_batch
    assert all(share % fewer or share // fewer > micro_batch for fewer in range(1, parts))
    assert OptimConfig(share * world_size, accumulation=1).micro_batches(world_size) == 1


def test_both_ways_to_cut_are_refused() -> None:
    with pytest.raises(ValueError, match=r"optim\.micro_batch is 4 and optim\.accumulation 2"):
        OptimConfig(8, accumulation=2, micro_batch=4)
    with pytest.raises(ValueError, match=r"optim\.micro_batch is -1"):
        OptimConfig(8, micro_batch=-1)
