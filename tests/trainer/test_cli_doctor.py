"""`earlybird doctor`, on this machine and over two ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

TINY = (
    *("data.source=synthetic", "data.synthetic_images=80", "data.synthetic_classes=4", "data.image_size=16"),
    *("data.resize_size=16", "model.num_exits=2", "model.first_channels=4", "model.growth=2", "optim.update_batch=8"),
    *("model.growth_factors=1,1", "model.bottleneck_factors=1,1", "model.classifier_channels=8", "weight_net.width=8"),
)
WORDS = [word for setting in TINY for word in ("--set", setting)]


def lines(printed: str) -> dict[str, dict[str, Any]]:
    return {line["subject"]: line for line in json.loads(printed)["lines"]}


def test_every_line_of_this_machine_and_the_forecast(earlybird: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = earlybird("doctor", "demo", "--device", "cpu", "--json", "--run-folder", run, *WORDS, "--forecast")
    found = lines(done.out)
    assert done.code == (1 if done.json["state"] == "fail" else 0)
    for subject in ("packages", "NCCL", "driver", "memory", "data", "index", "throughput", "run folder", "space"):
        assert found[subject]["state"] == "pass", found[subject]
    rate = found["rate forecast"]["values"]
    # Hours follow from the rate: epochs of all training images, and every evaluation.
    assert abs(rate["training_hours"] * 3600 * rate["images_per_second"] / (6 * 72) - 1) < 1e-6
    assert rate["device_hours"] == rate["hours"] > 0
    assert not list(tmp_path.iterdir())


def test_missing_data_fails(earlybird: Any, tmp_path: Path) -> None:
    done = earlybird(
        "doctor", "demo", "--device", "cpu", "--json", "--data", tmp_path / "none", "--run-folder", tmp_path
    )
    assert done.code == 1
    assert "does not exist" in lines(done.out)["data"]["said"]


def test_refusals(earlybird: Any) -> None:
    assert "add --forecast" in earlybird("doctor", "--batch", "8").err
    done = earlybird("doctor", "--target", "slrum")
    assert (done.code, "did you mean slurm?" in done.err) == (2, True)


def test_two_ranks_examine_their_network(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--rdzv-endpoint=localhost:0"]
    command += ["--rdzv-backend=c10d", "-m", "trainer", "doctor", "demo", "--json", "--device", "cpu"]
    done = subprocess.run(
        [*command, "--run-folder", str(tmp_path / "run"), *WORDS],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = lines(done.stdout)
    subjects = ["rendezvous", "CPU group", "versions", "data of ranks", "clocks of ranks", "shared folder"]
    for subject in (*subjects, "all-reduce"):
        assert found[subject]["state"] == "pass", found[subject]
    assert found["all-reduce"]["values"]["bus_bytes_per_second"] > 0
    assert not list(tmp_path.iterdir())
