"""The ledger of image ids: the newest start counts; what is missing or doubled shows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.run.ledger import Ledger, read_ledger, unequal

ROOT = Path(__file__).resolve().parents[3]


def write(run: Path, rank: int, began: float, rows: dict[int, list[int]]) -> None:
    with closing(Ledger(run, rank, began)) as ledger:
        for iteration, ids in rows.items():
            ledger.write(iteration, np.array(ids))


def test_the_newest_start_counts(tmp_path: Path) -> None:
    """Two ranks for three iterations; then one alone from iteration 1 on."""
    write(tmp_path, 0, 1.0, {0: [0, 1], 1: [4, 5], 2: [8, 9]})
    write(tmp_path, 1, 1.0, {0: [2, 3], 1: [6, 7], 2: [10, 11]})
    write(tmp_path, 0, 2.0, {1: [4, 5, 6, 7], 2: [8, 9, 10, 11]})
    ledger = read_ledger(tmp_path)
    assert {iteration: sorted(ids.tolist()) for iteration, ids in ledger.items()} == {
        0: [0, 1, 2, 3],
        1: [4, 5, 6, 7],
        2: [8, 9, 10, 11],
    }
    assert unequal(ledger, 12, 4) == ""
    with pytest.raises(ValueError, match=r"run\.record_ids=true"):
        read_ledger(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("ledger", "said"),
    [
        ({0: [0, 1], 2: [2, 3]}, r"iterations \[1\] are missing"),
        ({0: [0, 1], 1: [2]}, "iteration 1 has 1 images, not 2"),
        ({0: [0, 1], 1: [0, 2]}, "3 images of 4 came 0 to 2 times"),
        ({0: [0, 1], 1: [2, 9], 2: [3, 7]}, "6 images of 4"),
    ],
)
def test_what_is_wrong_shows(ledger: dict[int, list[int]], said: str) -> None:
    assert re.search(said, unequal({iteration: np.array(ids) for iteration, ids in ledger.items()}, 4, 2))


def test_images_held_out_leave_gaps() -> None:
    assert unequal({0: np.array([0, 90]), 1: np.array([7, 12]), 2: np.array([90, 7])}, 4, 2) == ""


def test_a_run_keeps_one(earlybird: Any, tmp_path: Path) -> None:
    """72 of 80 images train, 16 an iteration: two epochs are nine iterations."""
    run = tmp_path / "run"
    assert earlybird.train(run, "run.record_ids=true").code == 0
    ledger = read_ledger(run)
    assert (len(ledger), unequal(ledger, 72, 16)) == (9, "")
    assert not (tmp_path / "other" / "ids").exists()


def test_a_node_is_lost_and_comes_back() -> None:
    """Two torchrun agents, one killed with its worker: the other goes on from the last checkpoint within a minute, and
    takes it back."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "soak.py"), "nodes"], capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-4000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["seconds_until_alone"] < 60
    (first, _), *others = result["starts"]
    assert (first, others[-1][0]) == (2, 2)
    assert all(iteration >= 3 for _, iteration in others), "three iterations were safe when the node was killed"
    assert 1 in [size for size, _ in others]
    assert (result["ledger"], result["state"]) == ("whole", "preempted")
