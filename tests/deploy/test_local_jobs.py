"""`submit --target local`: a real torchrun apart from the terminal, followed, cancelled, waited for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMALL = """model.num_exits=2 model.first_channels=4 model.growth=2 model.growth_factors=1,1 model.bottleneck_factors=1,1
model.classifier_channels=8 weight_net.width=8 data.image_size=16 data.resize_size=16 data.num_threads=1
optim.update_batch=16 data.source=synthetic data.synthetic_images=64 data.synthetic_classes=4"""
Call = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def earlybird(tmp_path: Path) -> Call:
    def call(*words: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "trainer", *map(str, words)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return call


def submit(earlybird: Call, *words: object) -> subprocess.CompletedProcess[str]:
    small = [word for setting in SMALL.split() for word in ("--set", setting)]
    return earlybird("submit", "demo", "--target", "local", "--run-folder", "a b's $(run)", *small, *words)


def test_two_seeds_of_two_processes_train_one_after_another(earlybird: Call) -> None:
    done = submit(earlybird, "--processes", 2, "--seeds", "3,5", "--set", "run.epochs=2", "--wait", "--json")
    assert done.returncode == 0, done.stderr
    folders = json.loads(done.stdout)["run_folders"]
    rows = json.loads(earlybird("status", "a b's $(run)", "--json").stdout)
    assert [(row["run"], row["state"]) for row in rows] == [(folder, "completed") for folder in folders]
    assert [json.loads((Path(folder) / "config.json").read_text())["seed"] for folder in folders] == [3, 5]
    assert "completed after" in earlybird("logs", folders[1]).stdout
    assert (Path(folders[1]) / "logs" / "rank-1.log").exists()


def test_a_cancel_saves_and_a_failure_says_so(earlybird: Call, tmp_path: Path) -> None:
    run = "a b's $(run)"
    assert submit(earlybird, "--set", "run.epochs=100000", "--set", "run.log_every=1").returncode == 0
    log, end = tmp_path / run / "log.jsonl", time.monotonic() + 60
    while not (log.is_file() and log.read_text().count('"train"') > 3):
        assert time.monotonic() < end, (tmp_path / run / "logs" / "job.log").read_text()
        time.sleep(0.2)
    assert earlybird("cancel", run).returncode == 0
    followed = earlybird("logs", run, "--job", "-f")  # until it has ended
    assert "ended:" in followed.stdout
    standing: dict[str, Any] = json.loads((ended := earlybird("status", run, "--json")).stdout)
    assert (ended.returncode, standing["state"]) == (1, "cancelled")
    assert standing["last_checkpoint"]["step"] == standing["step"] > 0, "it saved"


def test_a_refusal_on_its_node_is_what_status_says(earlybird: Call, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    given = ("--run-folder", "run", "--data", gone, "--data-elsewhere", "--wait")
    assert earlybird("submit", "demo", *given).returncode == 1
    standing: dict[str, Any] = json.loads(earlybird("status", "run", "--json").stdout)
    assert (standing["run"], standing["state"]) == ("run", "failed")
    assert standing["job"]["reason"].startswith(f"data.path {gone} does not exist")


@pytest.mark.parametrize(
    ("words", "said"), [(["--nodes", 2], "this machine is one node"), (["--gpus", 4096], "this machine has")]
)
def test_refusals(earlybird: Call, tmp_path: Path, words: list[object], said: str) -> None:
    refused = submit(earlybird, "--set", "optim.update_batch=4096", "--set", "data.synthetic_images=20000", *words)
    assert (refused.returncode, refused.stderr.count("\n"), refused.stdout) == (2, 1, ""), refused.stderr
    assert said in refused.stderr
    assert not (tmp_path / "a b's $(run)").exists()
