"""Long trials of what a run survives; `make soak` runs all of them, each prints one JSON object.

python tests/soak.py kills [--number 100]    SIGKILL at random instants of one run: the weights end with the same bits
python tests/soak.py nodes [--number 1]      two nodes, one killed and brought back: no image lost, none twice
python tests/soak.py saves                   a save a minute of the ImageNet net: what training waits for it
python tests/soak.py scrapes                 1,000 scrapes during 100 iterations
"""

from __future__ import annotations

import argparse
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from trainer.run.ledger import read_ledger, unequal  # noqa: E402
from trainer.run.status import run_status  # noqa: E402
from trainer.telemetry.jsonl import read_rows  # noqa: E402

RECORDED = {"run.log_every": 1, "run.record_ids": True}
TINY = RECORDED | {
    "data.source": "synthetic",
    "data.synthetic_images": 800,
    "data.synthetic_classes": 4,
    "data.image_size": 16,
    "data.resize_size": 18,
    "model.num_exits": 2,
    "model.first_channels": 4,
    "model.growth": 4,
    "model.growth_factors": "1,1",
    "model.bottleneck_factors": "1,1",
    "model.classifier_channels": 8,
    "weight_net.width": 8,
    "meta.interval": 2,
    "optim.update_batch": 8,
}


def train_command(run: Path, settings: dict[str, Any], recipe: str = "demo") -> list[str]:
    pairs = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
    return ["train", recipe, "--run-folder", str(run), "--device", "cpu", *pairs]


@contextmanager
def started(command: list[str], log: Path) -> Any:
    """A process that is killed at the end, with all that it started."""
    with log.open("a") as out:
        process = subprocess.Popen(
            command,
            # The second: torch 2.14's torchrun tells a node that comes back no address where it shares its own store.
            env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[Any]) -> None:
    """SIGKILL, as when a node loses its power: torchrun's workers are in groups of their own."""
    with suppress(psutil.NoSuchProcess):
        tree = psutil.Process(process.pid)
        for one in (tree, *tree.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()


def wait_until(reached: Callable[[], Any], seconds: float, what: str) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := reached():
            return value
        time.sleep(0.1)
    raise TimeoutError(f"{what} did not come in {seconds:.0f} s")


def rows_of(run: Path, event: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(run / "log.jsonl") if row["event"] == event]


def newest_iteration(run: Path) -> int:
    """Of the last whole train row, from the log's end alone: it is asked often, beside a run that is timed."""
    with (run / "log.jsonl").open("rb") as log:
        log.seek(max(0, log.seek(0, os.SEEK_END) - 16_384))
        rows = log.read().split(b"\n")[1:-1]
    return max((row["iteration"] for row in map(json.loads, rows) if row["event"] == "train"), default=0)


def moved(run: Path, before: int, process: subprocess.Popen[Any]) -> bool:
    """Has a start written more than its first row, or ended?"""
    return len(read_rows(run / "log.jsonl")) > before + 1 or process.poll() is not None


def wait_for(where: Path, letter: str, process: subprocess.Popen[Any]) -> None:
    """Until the process is where `letter` stands for, or 20 seconds."""
    deadline = time.monotonic() + 20
    while letter not in where.read_text() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.0002)


PHASES = {"s": "start", "t": "train", "m": "meta", "e": "evaluation", "c": "checkpoint"}  # of tests/soak_worker.py


def kills(folder: Path, number: int, seed: int) -> dict[str, Any]:
    """`train demo`, its net on its photographs, is killed `number` times, wherever it is, and ends with the bits of the
    run that nothing happened to. What takes little of the time is aimed at: evaluations and writes of checkpoints.
    """
    chance = random.Random(seed)
    settings = RECORDED | {"checkpoint.every": "1steps", "run.evaluate_every": 1}
    run, whole, where = folder / "run", folder / "whole", folder / "where"

    def until_done(to: Path, log: Path) -> int:
        with started([sys.executable, "-m", "trainer", *train_command(to, settings)], log) as process:
            return int(process.wait())

    if until_done(whole, folder / "whole.log"):
        raise RuntimeError("the run that nothing happens to has failed")
    iterations = run_status(whole)["step"]
    pace = statistics.median(row["seconds"] for row in rows_of(whole, "train"))
    evaluations = [row["iteration"] for row in rows_of(whole, "eval")][:-1]
    evaluation = min(row["seconds"] for row in rows_of(whole, "eval"))
    killed_in, amid_writes = dict.fromkeys(PHASES.values(), 0), 0
    worker = [sys.executable, str(ROOT / "tests" / "soak_worker.py"), str(where)]
    for done in range(number):
        where.write_text("s-")
        with started([*worker, *train_command(run, settings)], folder / "killed.log") as process:
            before = read_rows(run / "log.jsonl")
            reached = max((row["iteration"] for row in before if row["event"] == "train"), default=0)
            aim, left = chance.random(), iterations - 10 - reached  # some are left for the last start
            if aim < 0.05:
                time.sleep(chance.uniform(0, 5))  # mostly before the first iteration
            elif aim < 0.7 and any(0 <= evaluated - reached <= 2 for evaluated in evaluations):
                wait_for(where, "e", process)
                time.sleep(chance.uniform(0, 0.7 * evaluation))
            elif aim < 0.3:
                wait_for(where, chance.choice("wwwc"), process)
                time.sleep(chance.uniform(0, 0.01))
            else:  # as long as those to come can share what is left; the first row is an iteration
                wait_until(partial(moved, run, len(before), process), 120, "a row")
                mean = max(left / (number - done) - 1, 0.1)
                time.sleep(pace * min(chance.expovariate(1 / mean), max(left, 0)))
            if process.poll() is not None:
                break  # it has come to its end before
            end(process)
        at = where.read_text()
        killed_in[PHASES[at[0]]] += 1
        amid_writes += at[1] == "w"
    code = until_done(run, folder / "end.log")
    ours, theirs = run_status(run), run_status(whole)
    killed = sum(killed_in.values())
    same, ids = ours["weights_sha256"] == theirs["weights_sha256"], read_ledger(whole)
    wrong = unequal(read_ledger(run), len(set(np.concatenate(list(ids.values())).tolist())), 128)
    return {
        "kills": killed,
        "killed_in": killed_in,
        "amid_writes": amid_writes,
        "restarts": ours["restarts"],
        "exit_code": code,
        "iterations": ours["step"],
        "same_bits": same,
        "ledger": wrong or "whole",
        "goodput_ratio": round(ours["goodput_ratio"], 3),
        "badput_seconds": {cause: round(seconds) for cause, seconds in ours["badput_seconds"].items()},
        "passed": same and not wrong and not code and killed == number,
    }


def nodes(folder: Path) -> dict[str, Any]:
    """Two torchrun agents meet; one is killed with its worker, the other goes on alone and takes it back."""
    run = folder / "run"
    settings = TINY | {"checkpoint.every": "3steps", "run.epochs": 100_000, "run.evaluate_every": 100_000}
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    agent = [
        *(sys.executable, "-m", "torch.distributed.run", "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=9"),
        *("--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}", "--rdzv-id=soak", "--local-addr=127.0.0.1"),
        *("--rdzv-conf=last_call_timeout=2,keep_alive_interval=1,keep_alive_max_attempt=4", "-m", "--", "trainer"),
        *train_command(run, settings),
    ]

    def trained_at(world_size: int, since: float) -> dict[str, Any] | None:
        """The first log row of a start with that many ranks after `since`, once a checkpoint has followed it."""
        begun = [row for row in rows_of(run, "start") if row["world_size"] == world_size and row["time"] > since]
        rows = [row for row in rows_of(run, "train") if begun and row["time"] > begun[-1]["time"]]
        saved = [row for row in rows_of(run, "checkpoint") if begun and row["time"] > begun[-1]["time"]]
        return rows[0] if rows and saved else None

    with started(agent, folder / "first.log") as first:
        time.sleep(1)
        with started(agent, folder / "second.log") as second:
            wait_until(lambda: trained_at(2, 0), 120, "training on two nodes")
            end(second)
            killed = time.time()
        alone = wait_until(lambda: trained_at(1, killed), 120, "training on the node that is left")
        with started(agent, folder / "back.log"):
            back = time.time()
            together = wait_until(lambda: trained_at(2, back), 120, "training on both nodes again")
            first.terminate()
            first.wait(timeout=60)
    ledger = read_ledger(run)
    wrong = unequal(ledger, 720, 16)
    return {
        "seconds_until_alone": round(alone["time"] - killed, 1),
        "seconds_until_together": round(together["time"] - back, 1),
        "iterations": len(ledger),
        "starts": [(row["world_size"], row["iteration"]) for row in rows_of(run, "start")],
        "state": run_status(run)["state"],
        "ledger": wrong or "whole",
        "passed": not wrong and alone["time"] - killed < 60,
    }


def saves(folder: Path) -> dict[str, Any]:
    """The ImageNet net on random images with a save a minute, four minutes long."""
    run = folder / "run"
    settings = {"data.source": "synthetic", "data.synthetic_classes": 1000, "data.synthetic_images": 2000}
    settings |= {"optim.update_batch": 8, "checkpoint.every": "1min", "run.log_every": 1, "run.epochs": 100_000}
    command = train_command(run, settings, "imagenet-msdnet-step4")
    with started([sys.executable, "-m", "trainer", *command], folder / "saved.log") as process:
        wait_until(lambda: len(rows_of(run, "checkpoint")) >= 4, 600, "four checkpoints")
        process.terminate()
        process.wait(timeout=60)
    saved = rows_of(run, "checkpoint")[:4]
    begun = next(row for row in rows_of(run, "train"))["time"]
    newest = run / "checkpoints" / rows_of(run, "checkpoint")[-1]["folder"]
    waited, passed = sum(row["seconds"] for row in saved), saved[-1]["time"] - begun
    return {
        "saves": len(saved),
        "megabytes": round(sum(file.stat().st_size for file in newest.iterdir()) / 1e6),
        "seconds_waited_each": [round(row["seconds"], 3) for row in saved],
        "seconds": round(passed, 1),
        "waited_percent": round(100 * waited / passed, 3),
        "passed": waited < 0.01 * passed,
    }


def scrapes(folder: Path) -> dict[str, Any]:
    """1,000 scrapes while 100 iterations run: their time beside that of the 100 before and after."""
    run = folder / "run"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = TINY | {
        "data.image_size": 24,
        "data.resize_size": 26,
        "model.first_channels": 16,
        "model.growth": 16,
    }
    settings |= {"optim.update_batch": 32, "meta.interval": 1}  # iterations all alike, of some tenths of a second
    settings |= {"telemetry.port": port, "run.epochs": 100_000}
    command = train_command(run, settings)
    pace: dict[str, list[float]] = {"quiet": [], "scraped": []}
    count = 0
    with started([sys.executable, "-m", "trainer", *command], folder / "scraped.log"):
        wait_until(lambda: len(rows_of(run, "train")) > 10, 120, "training")
        for turn in range(10):
            kind = ("quiet", "scraped")[turn % 2]
            begun = newest_iteration(run)
            answered = 0
            while (now := newest_iteration(run)) < begun + 20:
                if kind == "scraped":
                    for _ in range(10 * (now - begun + 1) - answered):
                        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).close()
                        answered += 1
                time.sleep(0.05)  # this process must not be what is measured
            count += answered
            rows = [row for row in rows_of(run, "train") if begun < row["iteration"] <= begun + 20]
            pace[kind] += [row["seconds"] for row in rows]
    quiet, scraped = statistics.median(pace["quiet"]), statistics.median(pace["scraped"])
    noise = statistics.quantiles(pace["quiet"], n=4)
    return {
        "scrapes": count,
        "seconds_an_iteration": round(quiet, 4),
        "seconds_an_iteration_scraped": round(scraped, 4),
        "quartiles": [round(noise[0], 4), round(noise[2], 4)],
        "passed": count >= 1000 and scraped <= noise[2],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trial", choices=["kills", "nodes", "saves", "scrapes"])
    parser.add_argument("--number", type=int, help="of kills (100), or of times that the nodes meet (1)")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10_000)
    chosen = parser.parse_args()
    trials: dict[str, Callable[[Path], dict[str, Any]]] = {
        "kills": lambda folder: kills(folder, chosen.number or 100, chosen.seed),
        "nodes": nodes,
        "saves": saves,
        "scrapes": scrapes,
    }
    passed = True
    for _ in range(chosen.number or 1 if chosen.trial == "nodes" else 1):
        result = tried(trials[chosen.trial])
        print(json.dumps({"trial": chosen.trial, "seed": chosen.seed, **result}), flush=True)
        passed = passed and result["passed"]
    sys.exit(0 if passed else 1)


def tried(trial: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """The trial in a folder of its own; where it cannot go on, what its processes said."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            return trial(folder)
        except Exception:
            for log in folder.glob("*.log"):
                said = [line for line in log.read_text().splitlines() if not line.startswith("train  iteration")]
                print("\n".join([f"--- {log.name}", *said[-80:]]), file=sys.stderr)
            raise


if __name__ == "__main__":
    main()
