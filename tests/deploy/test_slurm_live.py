"""A real Slurm of two nodes on this machine takes what `earlybird submit` sends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.slurm_cluster import Cluster, missing, wait_until

ROOT = Path(__file__).resolve().parents[2]
# The demo's ways in a net so small that an epoch takes a second; gloo, since torch sees no GPU behind the stand-ins.
SMALL = """model.num_exits=2 model.first_channels=4 model.growth=2 model.growth_factors=1,1 model.bottleneck_factors=1,1
model.classifier_channels=8 weight_net.width=8 data.image_size=16 data.resize_size=16 data.num_threads=1
optim.update_batch=16 run.log_every=1 data.source=synthetic data.synthetic_images=320 data.synthetic_classes=4"""


@dataclass
class Outcome:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class User:
    """At a login node of the cluster."""

    cluster: Cluster
    home: Path

    def __call__(self, *words: object, seconds: float = 100.0) -> Outcome:
        done = subprocess.run(
            [sys.executable, "-m", "trainer", *map(str, words)],
            cwd=self.home,
            env={
                **self.cluster.environment,
                "PYTHONPATH": str(ROOT),
                "OMP_NUM_THREADS": "1",
                "HOME": str(self.home),
                "XDG_CACHE_HOME": str(self.home / "cache"),
            },
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def submit(self, run: str, *words: object, seconds: float = 100.0) -> Outcome:
        small = [word for setting in SMALL.split() for word in ("--set", setting)]
        command = ("submit", "demo", "--target", "slurm", "--nodes", 2, "--run-folder", run, "--json", *small, *words)
        return self(*command, seconds=seconds)

    def rows(self, run: str) -> list[dict[str, Any]]:
        log = self.home / run / "log.jsonl"
        return (
            [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")] if log.is_file() else []
        )

    def iterations(self, run: str) -> list[int]:
        return [row["iteration"] for row in self.rows(run) if row["event"] == "train"]

    def told(self, run: str) -> str:
        logs = sorted((self.home / run / "logs").glob("*.log"))
        return "\n".join(f"{log.name}: {log.read_text()[-1500:]}" for log in logs)


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Iterator[User]:
    if reason := missing():
        pytest.skip(reason)
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield User(cluster, tmp_path_factory.mktemp("home"))
    finally:
        cluster.stop()


def test_two_nodes_train_to_the_end(user: User) -> None:
    done = user.submit("end", "--gpus", 2, "--set", "run.epochs=2", "--wait", seconds=200)
    assert done.code == 0, done.err + user.told("end")
    standing = user("status", "end", "--json").json
    assert (standing["state"], standing["job"]["state"], standing["job"]["nodes"]) == (
        "completed",
        "completed",
        "n[1-2]",
    )
    (start,) = [row for row in user.rows("end") if row["event"] == "start"]
    assert start["world_size"] == 4
    assert user("logs", "end").out.count("completed after") == 1
    assert user("logs", "end", "--job").out.count("on n[1-2]") == 1
    assert user("logs", "end", "--rank", 3).code == 0
    nobody = user("logs", "end", "--rank", 4)
    assert nobody.code == 2
    assert "rank-3.log" in nobody.err


def test_one_job_through_preemption_a_dead_node_and_a_cancel(user: User) -> None:
    run, long = "long", ("--gpus", 1, "--set", "run.epochs=100000", "--set", "checkpoint.every=20steps")
    assert user.submit(run, *long).code == 0
    job = user("status", run, "--json").json["job"]["id"]

    def waits_again() -> bool:
        return user.cluster.field(job, "JobState") == "PENDING"

    def goes_on_after(iteration: int) -> None:
        user.cluster.start_now(job)
        wait_until(lambda: user.iterations(run)[-1] > iteration + 25, 90, lambda: user.told(run))

    wait_until(lambda: len(user.iterations(run)) > 50, 90, lambda: user.told(run))
    again = user.submit(run, *long)
    assert (again.code, again.out) == (2, ""), "one folder, one job"
    assert f"job {job}" in again.err

    # A job that may push it aside: it saves, waits, and goes on where it was.
    options = ("--partition=high", "--nodes=2", "--gres=gpu:2", "--output=/dev/null")
    assert user.cluster.asks("sbatch", *options, stdin="#!/bin/bash\nsleep 1\n")
    wait_until(waits_again, 60, lambda: user.told(run))
    saved = user.iterations(run)[-1]
    standing = user("status", run, "--json")
    assert (standing.code, standing.json["state"], standing.json["job"]["state"]) == (0, "pending", "pending")
    assert standing.json["last_checkpoint"]["step"] == saved, "it saved before it went"
    goes_on_after(saved)
    rows = user("runs", ".", "--json").json
    assert [row["state"] for row in rows if row["run"] == run] == ["running"]

    # A node that loses its power: it goes on from the newest checkpoint.
    user.cluster.kill_node(2)
    wait_until(waits_again, 90, lambda: user.told(run))
    before = user.iterations(run)[-1]
    user.cluster.bring_back(2)
    goes_on_after(before)
    starts = [row for row in user.rows(run) if row["event"] == "start"]
    assert [row["world_size"] for row in starts] == [2, 2, 2]
    assert starts[1]["iteration"] == saved < starts[2]["iteration"] <= before
    assert starts[2]["iteration"] % 20 == 0, "a checkpoint that was due, not one of a stop"

    follower = subprocess.Popen(
        [sys.executable, "-m", "trainer", "logs", run, "--job", "-f"],
        cwd=user.home,
        env={**user.cluster.environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert user("cancel", run).code == 0
    wait_until(lambda: user.cluster.field(job, "JobState") == "CANCELLED", 60, lambda: user.told(run))
    printed, _ = follower.communicate(timeout=60)
    assert printed.count(f"job {job} start") == 3
    assert printed.count("ended: preempted") == 2
    # Of the lost node; where Slurm misses it before the script does, the script ends without a word.
    assert printed.count("ended: without a summary") <= 1
    ended = user("status", run, "--json")
    assert (ended.code, ended.json["state"], ended.json["restarts"]) == (1, "cancelled", 2)
    assert ended.json["last_checkpoint"]["step"] == user.iterations(run)[-1]
    nothing = user("cancel", run)
    assert (nothing.code, nothing.err.count("\n")) == (2, 1)


def test_a_preemption_while_data_is_copied(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits for its nodes again, as a run that trains does. cp stands for one of a large set."""
    programs, run, site = user.home / "programs", "copied", user.home / "staged.toml"
    programs.mkdir()
    (programs / "cp").write_text(f"#!/bin/sh\ntouch {user.home}/copies\nexec sleep 90\n")
    (programs / "cp").chmod(0o755)
    site.write_text(f'[slurm]\nstaging = "{user.home}/disk"\n')
    monkeypatch.setitem(user.cluster.environment, "PATH", f"{programs}:{user.cluster.environment['PATH']}")
    data = ("--data", user.home, "--data-elsewhere", "--site", site)
    assert user("submit", "demo", "--target", "slurm", "--nodes", 2, "--run-folder", run, *data).code == 0
    job = user("status", run, "--json").json["job"]["id"]
    wait_until((user.home / "copies").exists, 60, lambda: user.told(run))
    options = ("--partition=high", "--nodes=2", "--gres=gpu:2", "--output=/dev/null")
    assert user.cluster.asks("sbatch", *options, stdin="#!/bin/bash\nsleep 1\n")
    wait_until(lambda: user.cluster.field(job, "JobState") == "PENDING", 60, lambda: user.told(run))
    assert user.cluster.field(job, "Restarts") == "1"
    assert user("cancel", run).code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nodes", 4], "partition low has 2"),
        (["--gpus", 8], "the most that a node has there is 2"),
        (["--cpus", 5], "sbatch refused"),
        (["--data", "nowhere"], "nowhere does not exist"),
        (["--site", "wrong.toml"], "did you mean high?"),
        (["--set", "optim.update_batch=63"], "positive multiple of 2"),
    ],
)
def test_refusals_leave_nothing(user: User, words: list[object], said: str) -> None:
    (user.home / "wrong.toml").write_text('[slurm]\npartition = "hihg"\n')
    before = user.cluster.asks("squeue", "--noheader", "--states=all", "--format=%i")
    refused = user("submit", "demo", "--target", "slurm", "--nodes", 2, "--run-folder", "refused", *words)
    assert (refused.code, refused.err.count("\n")) == (2, 1), refused.err
    assert said in refused.err
    assert user.cluster.asks("squeue", "--noheader", "--states=all", "--format=%i") == before
    assert not (user.home / "refused").exists()


def test_no_cluster_is_one_line(user: User, tmp_path: Path) -> None:
    """Neither a controller that does not answer nor a machine without sbatch is a traceback."""
    away = Cluster(tmp_path)  # never started
    unreached = User(away, user.home).submit("away")
    assert (unreached.code, unreached.err.count("\n")) == (2, 1), unreached.err
    bare = {"PATH": os.path.dirname(sys.executable)}
    absent = User(away, user.home)
    away.environment |= bare
    refused = absent.submit("away")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "sbatch is not installed here" in refused.err
    assert not (user.home / "away").exists()
