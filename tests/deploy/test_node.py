"""One node's share: what a JobSet's pods run, run here as processes; exit codes that a cluster can go by."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy.job import Job
from deploy.jobset import jobset
from deploy.node import last_word
from deploy.site import Site, site_from

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {"run.log_every": 1, "optim.update_batch": 16, "model.num_exits": 2, "model.first_channels": 8}
Start = Callable[[list[str], int], subprocess.Popen[bytes]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts a pod's process with its number; what it prints is in the file pod.log."""
    running: list[subprocess.Popen[bytes]] = []

    def run(command: list[str], number: int) -> subprocess.Popen[bytes]:
        environment = os.environ | {
            "JOB_COMPLETION_INDEX": str(number),
            "OMP_NUM_THREADS": "1",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }
        with (tmp_path / "pod.log").open("a") as printed:
            running.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=printed, stderr=printed))
        return running[-1]

    yield run
    for process in running:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    volumes = {str(tmp_path): f"hostPath:{tmp_path}"}
    return site_from(
        {"python": sys.executable, "ports": {"rendezvous": port}, "kubernetes": {"image": "a", "volumes": volumes}}
    )


def command(job: Job, site: Site) -> list[str]:
    """What the pods run, with this machine as the head; Kubernetes reads $$ as $."""
    (made,) = jobset(job, job.elements[0], "demo", site)
    (container,) = made["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"]
    words = [*container["command"], *container["args"]]
    return [word.replace("demo-node-0-0.demo", "localhost").replace("$$", "$") for word in words]


def test_a_pod_that_is_taken_away_and_comes_back(start: Start, site: Site, tmp_path: Path) -> None:
    """Pod 1 is there before the head, and waits; it is told to go, all save; its successor meets the head again."""
    settings = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]
    job = Job("demo", ("train", "demo", "--max-steps", "10", *settings), str(tmp_path / "run"), nodes=2)
    log = tmp_path / "run" / "log.jsonl"
    pod = start(command(job, site), 1)
    time.sleep(2.0)
    assert pod.poll() is None
    assert not log.exists()
    head = start(command(job, site), 0)
    while not (log.exists() and '"event": "train"' in log.read_text()):
        assert head.poll() is None, (tmp_path / "pod.log").read_text()
        time.sleep(0.05)
    pod.send_signal(signal.SIGTERM)
    assert pod.wait(60) == 75, "torchrun itself ends with 1"
    successor = start(command(job, site), 1)
    assert (head.wait(180), successor.wait(60)) == (0, 0)
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["status"] for row in rows if row["event"] == "end"] == ["preempted", "stopped"]
    first, second = (row["iteration"] for row in rows if row["event"] == "start")
    assert 0 == first < second
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["iterations"] == 10


def test_a_run_that_diverged_ends_with_3(start: Start, site: Site, tmp_path: Path) -> None:
    """The worker stands for the trainer: it writes the end that the log would have."""
    worker = tmp_path / "worker.py"
    row = {"event": "end", "status": "diverged"}
    worker.write_text(
        f"import json, sys, time\nrow = {row} | {{'time': time.time()}}\n"
        f"open({str(tmp_path / 'log.jsonl')!r}, 'a').write(json.dumps(row) + chr(10))\nsys.exit(3)\n"
    )
    whole = command(Job("demo", ("train",), str(tmp_path), max_restarts=0), site)
    assert start([*whole[: whole.index("-m", 3)], str(worker)], 0).wait(60) == 3


def test_a_run_that_was_refused_ends_with_2(start: Start, site: Site, tmp_path: Path) -> None:
    """The trainer itself, refused: of four starts one looks at the data, and the cluster is told to try no more."""
    refused = "earlybird: data.path /nowhere does not exist"
    trains = ("train", "demo", "--set", "data.source=auto", "--set", "data.path=/nowhere")
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "refused").write_text("of an earlier job\n")
    whole = command(Job("demo", trains, str(tmp_path), processes=2, max_restarts=3), site)
    end = whole.index("-m", 3)
    traced = ["--no-python", sys.executable, "-X", "importtime", "-m", *whole[end + 2 :]]
    assert start([*whole[:end], *traced], 0).wait(100) == 2
    printed = (tmp_path / "pod.log").read_text()
    assert printed.count(refused) >= 4, "the line of every start, of one rank at least"
    assert len(re.findall(r"\| +torch$", printed, re.MULTILINE)) == 2, "each rank's first start alone came so far"
    assert f"earlybird: {(tmp_path / 'logs' / 'refused').read_text()}".startswith(refused)


def test_a_head_that_never_comes_ends_the_wait(start: Start, site: Site, tmp_path: Path) -> None:
    whole = command(Job("demo", ("train",), str(tmp_path), nodes=2), site)
    pod = start([*whole[: whole.index("--")], "--patience=1.5", *whole[whole.index("--") :]], 1)
    assert pod.wait(60) == 1
    assert "did not listen in 2 s" in (tmp_path / "pod.log").read_text()


def test_a_stop_while_it_waits_is_no_fault(start: Start, site: Site, tmp_path: Path) -> None:
    pod = start(command(Job("demo", ("train",), str(tmp_path), nodes=2), site), 1)
    time.sleep(1.0)
    pod.send_signal(signal.SIGTERM)
    assert pod.wait(20) == 75


def test_an_older_end_says_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    row = {"event": "end", "time": 1000.0, "status": "preempted"}
    log.write_text(json.dumps({"event": "start", "time": 900.0}) + "\n" + json.dumps(row) + "\n")
    assert last_word(log, 999.0) == "preempted"
    assert last_word(log, 1001.0) == ""
    log.write_text(log.read_text() + '{"event": "train", "time": 1001.0}\n')
    assert last_word(log, 999.0) == ""
    assert last_word(tmp_path / "none", 0.0) == ""
