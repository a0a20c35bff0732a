"""One node's share: real torchruns that meet, and exit codes that a cluster can go by."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.node import last_word

# Stands for the trainer in torchrun's workers: it writes the end that the run's log would have.
WORKER = """
import json, os, signal, sys, time
log, status, code = sys.argv[1], sys.argv[2], int(sys.argv[3])
rank, world = os.environ["RANK"], os.environ["WORLD_SIZE"]
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
open(f"{log}.{rank}-of-{world}", "w").close()
while status == "preempted" and not told:
    time.sleep(0.05)
if rank == "0" and status:
    open(log, "a").write(json.dumps({"event": "end", "time": time.time(), "status": status}) + chr(10))
sys.exit(code)
"""


@pytest.fixture
def start(tmp_path: Path):
    """Starts node `rank` of `nodes`, whose workers end as told."""
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    running: list[subprocess.Popen[str]] = []

    def run(rank: int, nodes: int, status: str, code: int, patience: float = 60) -> subprocess.Popen[str]:
        own = ["--rank-from", "NUMBER", "--head", f"localhost:{port}", "--run-folder", str(tmp_path)]
        torchrun = [f"--nnodes={nodes}", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=a", "--max-restarts=0"]
        command = [sys.executable, "-m", "deploy.node", *own, f"--patience={patience}", "--", *torchrun]
        command += [str(worker), str(tmp_path / "log.jsonl"), status, str(code)]
        environment = os.environ | {"NUMBER": str(rank), "OMP_NUM_THREADS": "1", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "10"}
        running.append(subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True))
        return running[-1]

    yield run
    for process in running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def test_a_node_waits_for_the_head(start, tmp_path: Path) -> None:
    second = start(1, 2, "completed", 0)
    time.sleep(2.0)
    assert second.poll() is None
    assert not list(tmp_path.glob("log.jsonl*"))
    head = start(0, 2, "completed", 0)
    assert (head.wait(90), second.wait(90)) == (0, 0)
    assert {path.name for path in tmp_path.glob("log.jsonl.*")} == {"log.jsonl.0-of-2", "log.jsonl.1-of-2"}


def test_a_head_that_never_comes_ends_the_wait(start) -> None:
    second = start(1, 2, "completed", 0, patience=1.5)
    assert second.wait(60) == 1
    assert "did not listen in 2 s" in second.stderr.read()


def test_a_stop_while_it_waits_is_no_fault(start) -> None:
    second = start(1, 2, "completed", 0)
    time.sleep(1.0)
    second.send_signal(signal.SIGTERM)
    assert second.wait(20) == 75


def test_a_preempted_run_ends_with_75(start, tmp_path: Path) -> None:
    """torchrun itself ends with 1, or by the signal."""
    node = start(0, 1, "preempted", 75)
    while not (tmp_path / "log.jsonl.0-of-1").exists():
        assert node.poll() is None
        time.sleep(0.1)
    time.sleep(0.3)  # the worker's handler stands before its file
    node.send_signal(signal.SIGTERM)
    assert node.wait(30) == 75


def test_a_run_that_diverged_ends_with_3(start) -> None:
    assert start(0, 1, "diverged", 3).wait(60) == 3


def test_an_older_end_says_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    row = {"event": "end", "time": 1000.0, "status": "preempted"}
    log.write_text(json.dumps({"event": "start", "time": 900.0}) + "\n" + json.dumps(row) + "\n")
    assert last_word(log, 999.0) == "preempted"
    assert last_word(log, 1001.0) == ""
    log.write_text(log.read_text() + '{"event": "train", "time": 1001.0}\n')
    assert last_word(log, 999.0) == ""
    assert last_word(tmp_path / "none", 0.0) == ""
