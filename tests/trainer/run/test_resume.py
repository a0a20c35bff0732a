"""A run that was interrupted ends with the bits of one that was not."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.run.checkpoint import CheckpointError, load_latest, save_checkpoint
from trainer.run.distributed import Ranks
from trainer.run.history import History
from trainer.run.resume import latest_for_all
from trainer.telemetry.jsonl import read_log, read_rows

ROOT = Path(__file__).resolve().parents[3]


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = load_latest(run)
    assert checkpoint is not None
    return checkpoint.tensors


def assert_alike(run: Path, other: Path) -> None:
    """Backbone, momentum, weight net, its Adam and the generator, bit for bit."""
    ours, theirs = tensors_of(run), tensors_of(other)
    assert ours.keys() == theirs.keys()
    groups = {name.split(".")[0] for name in ours}
    assert {"model", "optimizer", "generator"} <= groups
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize(
    ("settings", "stops"),
    [
        (["meta.interval=2"], [4]),
        (["meta.interval=2"], [1, 2, 5]),  # before, at and after a meta update; inside and behind an epoch's end
        (["meta.interval=1", "optim.accumulation=2", "sample_weights.centre=mat"], [3]),
        (["meta.interval=2", "optim.nesterov=true", "model.batch_norm=running"], [3]),
        (["sample_weights.enabled=false"], [4]),
        (["meta.interval=1", "meta.schedule=online"], [4]),
        (["meta.interval=2", "precision.dtype=float64"], [4]),
    ],
    ids=["weighted", "three-stops", "accumulated", "nesterov-running", "baseline", "online", "float64"],
)
def test_stopped_and_started_again(
    earlybird: Any, image_folder: Path, tmp_path: Path, settings: list[str], stops: list[int]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert earlybird.train(whole, *settings, data=image_folder).json["status"] == "completed"
    for last, status in (*((stop, "stopped") for stop in stops), (0, "completed")):
        torch.manual_seed(last)  # nothing may hang on what the process drew before
        outcome = earlybird.train(parts, *settings, data=image_folder, more=["--max-steps", last])
        assert outcome.json["status"] == status
    assert_alike(whole, parts)
    assert ("weight_net_optimizer.exp_avg.output.weight" in tensors_of(parts)) == ("enabled=false" not in settings[0])


def test_what_changes_no_weight_may_change(earlybird: Any, image_folder: Path, tmp_path: Path) -> None:
    """Threads, prefetch, log, checkpoint and evaluation rhythm, the data's place."""
    whole, parts, moved = tmp_path / "whole", tmp_path / "parts", tmp_path / "moved"
    assert earlybird.train(whole, data=image_folder, more=["--max-steps", 8]).code == 0
    assert earlybird.train(parts, data=image_folder, more=["--max-steps", 3]).code == 0
    moved.symlink_to(image_folder)
    free = ["data.num_threads=2", "data.prefetch=1", "run.log_every=1", "checkpoint.every=1steps", "checkpoint.keep=1"]
    assert earlybird.train(parts, *free, "run.evaluate_every=1", data=moved, more=["--max-steps", 8]).code == 0
    assert_alike(whole, parts)


def test_killed_at_any_moment(earlybird: Any, image_folder: Path, tmp_path: Path) -> None:
    """SIGKILL twice, at moments drawn anew each time, while every iteration writes a checkpoint."""
    settings = ["run.epochs=1000", "meta.interval=2", "run.log_every=1"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [sys.executable, "-m", "trainer", *earlybird.arguments(killed, *settings, data=image_folder)]
    for least in (5, 20):
        process = subprocess.Popen(
            [*command, "--set", "checkpoint.every=1steps"],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            while process.poll() is None and sum(row["event"] == "checkpoint" for row in rows(killed)) < least:
                time.sleep(0.01)
            time.sleep(random.uniform(0, 0.2))
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert process.returncode == -signal.SIGKILL
    reached = load_latest(killed)
    assert reached is not None
    assert reached.iteration >= 20
    last = reached.iteration + 3
    for run in (killed, whole):
        assert earlybird.train(run, *settings, data=image_folder, more=["--max-steps", last]).code == 0
    assert_alike(whole, killed)
    logged = [row["iteration"] for row in read_log(killed / "log.jsonl") if row["event"] == "train"]
    assert logged == list(range(1, last + 1))  # what was done twice counts once


def rows(run: Path) -> list[dict[str, Any]]:
    return read_rows(run / "log.jsonl")


def test_ranks_go_on_from_the_same_checkpoint(tmp_path: Path) -> None:
    """Of three, the second cannot read the newest one and the third not the one before: all take the oldest, and say
    why. Where one sees none at all, all refuse."""
    for iteration in (1, 2, 3):
        save_checkpoint(tmp_path, iteration, {"w": torch.full((2,), float(iteration))}, {}, keep=0)
    unreadable = {1: ["step-0000003"], 2: ["step-0000002"]}

    def folder_of(rank: int) -> Path:
        seen = tmp_path.with_name(f"seen-by-{rank}")
        shutil.copytree(tmp_path, seen)
        for name in unreadable.get(rank, []):
            (seen / "checkpoints" / name / "manifest.json").unlink()
        return seen

    found = together(3, lambda ranks: latest_for_all(folder_of(ranks.rank), ranks))
    assert [one.iteration for one in found] == [1, 1, 1]
    assert [name for name, _ in found[0].passed_over] == ["step-0000003", "step-0000002"]
    assert {reason for _, reason in found[0].passed_over} == {"rank 1 cannot read it", "rank 2 cannot read it"}

    refused = together(2, lambda ranks: latest_for_all(tmp_path if ranks.rank else tmp_path / "mine", ranks))
    assert [str(one).split(" in ")[0] for one in refused] == ["rank 0 sees no checkpoint"] * 2


def test_ranks_know_the_same_history(tmp_path: Path) -> None:
    """The second one's view of the shared folder lags: no evaluation yet."""
    exits = [{"exit": 1, "top1": 30.0}]
    written = [{"event": "train", "iteration": 5, "images": 80, "seconds": 1.0}]
    for rank, rows in enumerate(([*written, {"event": "eval", "iteration": 5, "exits": exits}], written)):
        (tmp_path / f"seen-by-{rank}").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    found = together(2, lambda ranks: History.read(tmp_path / f"seen-by-{ranks.rank}", 5, ranks))
    assert found == [History(80, 1.0, exits, 5)] * 2


def together(world_size: int, call: Callable[[Any], Any]) -> list[Any]:
    """What `call` gives (or raises) on every rank, each a thread."""
    told: list[list[Any]] = [[] for _ in range(world_size)]
    barrier = threading.Barrier(world_size, timeout=60)

    class Rank(Ranks):
        def gather(self, items: list[Any]) -> list[Any]:
            told[self.rank] = items
            barrier.wait()
            gathered = [item for part in told for item in part]
            barrier.wait()
            return gathered

    def on(rank: int) -> Any:
        try:
            return call(Rank(rank, world_size, rank, world_size, torch.device("cpu")))
        except CheckpointError as error:
            return error

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(on, range(world_size)))
