"""`earlybird sweep`: jobs of this machine one after another, a report, and nothing twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer.evaluation import command as command_room


def test_sweep_trains_and_evaluates_every_combination_once(
    earlybird: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "sweep"
    words = [word for word in earlybird.arguments(home)[6:] if word not in ("cpu", "--json")]
    command = ("sweep", "demo", "--folder", home, "--vary", "weight_net.depth:meta.ratio=1:0.5,2:0.75", *words)
    command = (*command, "--max-steps", "2")
    listed = earlybird(*command, "--dry-run", "--json")
    assert [Path(row["run"]).name for row in listed.json] == ["depth-1_ratio-0.5", "depth-2_ratio-0.75"]
    # In a process of its own: its jobs outlive it, and its list of them ends with it.
    process = [sys.executable, "-m", "trainer", *map(str, command), "--json"]
    done = subprocess.run(
        process, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    rows = values["rows"]
    assert [row["runs"] for row in rows] == [[row["run"]] for row in listed.json]
    (minus,) = values["differences"]
    assert (minus["minus"], minus["exits"][0]["interval"]) == (rows[0]["name"], None)
    assert minus["budgeted"]["difference"] == rows[1]["budgeted"]["top1"] - rows[0]["budgeted"]["top1"]
    assert done.stderr.count("is being evaluated") == 2
    assert (home / "comparison.html").is_file()
    again = earlybird(*command, "--json")
    assert again.json["rows"] == rows
    assert again.err.count("is complete already") == 2
    assert "is being evaluated" not in again.err

    (home / "depth-1_ratio-0.5" / "evaluation.json").unlink()
    plain = earlybird(*command, "--no-evaluate")
    assert plain.code == 0
    assert "No budgeted figures:" in plain.out
    assert "no interval" in plain.out
    assert plain.out.endswith(f"Report: {home / 'comparison.html'}\n")

    def moved(*arguments: object) -> None:
        raise ValueError("the images have moved")

    monkeypatch.setattr(command_room, "evaluate_run", moved)
    without = earlybird(*command, "--json")
    assert (without.code, without.json["rows"][0]["budgeted"]) == (0, None)
    assert "not evaluated (the images have moved)" in without.err


def test_refusals_come_before_any_job(earlybird: Any, tmp_path: Path) -> None:
    done = earlybird("sweep", "demo", "--folder", tmp_path, "--vary", "meta.ratio=0.5,-1")
    assert (done.code, "meta.ratio" in done.err) == (2, True)
    assert "one run, no sweep" in earlybird("sweep", "demo", "--folder", tmp_path).err
    assert not list(tmp_path.iterdir())
