"""How a run stands, read from its folder while it runs, after it was killed, and when it is done."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from trainer.run.checkpoint import load_latest
from trainer.run.iterations import Iterations
from trainer.run.status import _state, run_status, weights_sha256
from trainer.telemetry.goodput import Goodput
from trainer.telemetry.jsonl import read_rows

ROOT = Path(__file__).resolve().parents[3]
KEYS = {
    *("state", "recipe", "epoch", "step", "images_seen", "restarts"),
    *("goodput_ratio", "badput_seconds", "last_checkpoint", "weights_sha256"),
}
SETTINGS = ["checkpoint.every=2steps", "run.log_every=1", "run.evaluate_every=1000"]


def test_through_a_kill_and_a_restart(earlybird: Any, tmp_path: Path) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", *earlybird.arguments(run, *SETTINGS, "run.epochs=500")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            rows = read_rows(run / "log.jsonl")
            if sum(row["event"] == "checkpoint" for row in rows) >= 2:
                break
            time.sleep(0.05)
        running = run_status(run)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    assert set(running) == KEYS
    assert (running["state"], running["restarts"]) == ("running", 0)
    dead = run_status(run)
    assert (dead["state"], dead["restarts"]) == ("dead", 0)
    assert dead["step"] >= dead["last_checkpoint"]["step"] >= 4

    last = dead["step"] + 3
    for folder in (run, whole):
        assert earlybird.train(folder, *SETTINGS, "run.epochs=500", more=["--max-steps", last]).code == 0
    ours, theirs = run_status(run), run_status(whole)
    assert (ours["state"], ours["step"], ours["restarts"]) == ("stopped", last, 1)
    assert ours["images_seen"] == theirs["images_seen"], "work that was done again counts once"
    assert ours["weights_sha256"] == theirs["weights_sha256"]
    assert 0 < ours["goodput_ratio"] < 1
    rows = read_rows(run / "log.jsonl")
    account = Goodput(rows)
    elapsed = rows[-1]["time"] - rows[0]["process_began"]
    assert account.productive_seconds + sum(account.badput.values()) == pytest.approx(elapsed, abs=0.5)

    outcome = earlybird("status", run, "--json")
    assert (outcome.code, set(json.loads(outcome.out))) == (0, KEYS | {"run", "job"})
    assert json.loads(outcome.out)["job"] is None, "it was never submitted"
    shown = earlybird("status", run).out
    assert shown.startswith("stopped: demo, epoch")
    assert ours["weights_sha256"] in shown
    assert earlybird("status", tmp_path).code == 2


def test_the_hash_is_of_what_was_learned(earlybird: Any, tmp_path: Path) -> None:
    assert earlybird.train(tmp_path / "run", more=["--max-steps", 2]).code == 0
    found = load_latest(tmp_path / "run")
    assert found is not None
    own = weights_sha256(found.tensors)
    momentum = {name: tensor + 1 if name.startswith("optimizer.") else tensor for name, tensor in found.tensors.items()}
    assert weights_sha256(momentum) == own
    for prefix in ("model.", "weight_net."):
        name = next(
            name for name in found.tensors if name.startswith(prefix) and found.tensors[name].is_floating_point()
        )
        for change in (found.tensors[name] + 1, found.tensors[name].double(), found.tensors[name][None]):
            assert weights_sha256({**found.tensors, name: change}) != own
    assert weights_sha256(dict(reversed(found.tensors.items()))) == own
    assert weights_sha256({"model.empty": torch.zeros(0)}) != weights_sha256({})


@pytest.mark.parametrize(
    ("rows", "state"),
    [
        ([], "dead"),
        ([{"event": "train"}], "dead"),
        (["here", {"event": "train"}], "running"),
        (["here", "stall", {"event": "stalled"}], "running"),  # which is written once an iteration has ended again
        (["here", {"event": "train"}, "stall"], "stalled"),
        (["gone", {"event": "train"}, "stall"], "dead"),
        (["stall", "here"], "running"),
        (["far", {"event": "train", "time": -900}, "stall"], "stalled"),
        (["gone", {"event": "train"}], "dead"),
        (["far", {"event": "train", "time": -60}], "running"),
        (["far", {"event": "train", "time": -6000}], "dead"),
        (["here", {"event": "end", "status": "completed"}], "completed"),
        (["here", {"event": "end"}], "failed"),
        (["here", {"event": "end", "status": "preempted"}, "gone"], "dead"),
    ],
)
def test_states(rows: list[Any], state: str) -> None:
    own = psutil.Process()
    starts = {
        "here": {"host": socket.gethostname(), "pid": own.pid, "process_began": own.create_time()},
        "gone": {"host": socket.gethostname(), "pid": own.pid, "process_began": own.create_time() - 100},
        "far": {"host": "another", "pid": own.pid, "process_began": own.create_time()},
    }
    now, written, stalled_at = time.time(), [], 0.0
    for place, row in enumerate(rows):
        if row == "stall":
            stalled_at = now + place
        else:
            fields = {"event": "start", **starts[row]} if isinstance(row, str) else row
            written.append({**fields, "time": now + place + fields.get("time", 0)})
    assert _state(written, stalled_at) == state


def test_images_between_the_last_log_step_and_a_crash_count(
    earlybird: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logged after iteration 4, saved after 6, failed after 7: 5 and 6 are in no row of the log."""
    run, between = tmp_path / "run", Iterations.between

    def failing(iterations: Iterations, *arguments: Any) -> bool:
        if iterations.state.progress.iteration == 7:
            raise ValueError("the reader broke")
        return between(iterations, *arguments)

    settings = ["checkpoint.every=3steps", "run.log_every=4"]
    with monkeypatch.context() as patch:
        patch.setattr(Iterations, "between", failing)
        assert earlybird.train(run, *settings).code == 2
    assert earlybird.train(run, *settings).code == 0
    seen = run_status(run)
    assert (seen["step"], seen["images_seen"]) == (9, 9 * 16)


def test_a_diverged_run_says_so(earlybird: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert earlybird.train(run, "optim.base_lr=1e18").code == 3
    assert run_status(run)["state"] == "diverged"
    assert earlybird("status", run).code == 1
