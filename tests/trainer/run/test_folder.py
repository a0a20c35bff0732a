"""One folder, one run: what may change in its continuation, and what must be allowed by name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from trainer.config import read_config
from trainer.telemetry.jsonl import read_rows


def test_allowed_by_name(earlybird: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert earlybird.train(run, more=["--max-steps", 2]).code == 0
    before = (run / "config.json").read_text()
    changed = ["meta.lr=0.5", "optim.base_lr=0.01"]
    refused = earlybird.train(run, *changed, more=["--allow", "meta.lr"])
    assert refused.code == 2
    assert "optim.base_lr is 0.1 there and 0.01 here" in refused.err
    assert "meta.lr" not in refused.err
    assert "--allow NAME" in refused.err
    mistyped = earlybird.train(run, *changed, more=["--allow", "meta.lr", "--allow", "optim.base_rl"])
    assert mistyped.code == 2
    assert "--allow optim.base_rl: no setting has this name; did you mean optim.base_lr?" in mistyped.err
    assert (run / "config.json").read_text() == before
    done = earlybird.train(run, *changed, more=["--allow", "meta.lr", "--allow", "optim.base_lr"])
    assert done.code == 0, done.err
    assert read_config(run / "config.json").optim.base_lr == 0.01
    rows = read_rows(run / "log.jsonl")
    assert [(row["folder"], row["iteration"]) for row in rows if row["event"] == "goes on from"] == [
        ("step-0000002", 2)
    ]
    assert max(row["learning_rate"] for row in rows if row["event"] == "train" and row["iteration"] > 2) < 0.01


def test_the_grace_must_be_a_time(earlybird: Any, tmp_path: Path) -> None:
    refused = earlybird.train(tmp_path / "run", "run.grace=5steps")
    assert (refused.code, "run.grace is '5steps'; it must be a time" in refused.err) == (2, True)
    assert not (tmp_path / "run").exists()


def test_a_run_is_nobody_elses(earlybird: Any, tmp_path: Path) -> None:
    """Weights, log and settings are closed to the world, and what the process makes afterwards is as it was."""
    run = tmp_path / "run"
    before = os.umask(0o022)
    try:
        assert earlybird.train(run, "telemetry.port=0").code == 0
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    made = [run, *run.rglob("*")]
    assert len(made) > 5
    assert [str(path) for path in made if path.stat().st_mode & 0o007] == []
