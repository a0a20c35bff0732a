"""Several runs as one piece of work: what their folders hold already is theirs, or refused."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from trainer.run.trials import Place, Trial, plan, run_trials, seeded

SYNTHETIC = ("data.source=synthetic", "data.synthetic_images=80", "data.synthetic_classes=4", "optim.update_batch=8")


def settings_of(earlybird: Any, run: Path) -> tuple[str, ...]:
    """Of its tiny runs."""
    return tuple(word for word in earlybird.arguments(run) if "=" in word)


def test_a_complete_run_of_other_settings_is_no_result_of_these(earlybird: Any, tmp_path: Path) -> None:
    run, place = tmp_path / "run", Place()
    assert earlybird.train(run, "run.epochs=1").code == 0
    same = Trial("demo", (*settings_of(earlybird, run), "run.epochs=1"), run)
    assert run_trials([same], place) == {run: "completed"}
    longer = dataclasses.replace(same, settings=(*same.settings, "run.epochs=10"))
    with pytest.raises(ValueError, match=r"run holds another run: run\.epochs is 1 there and 10 here; give --folder"):
        run_trials([longer], place)


def test_every_trial_is_resolved_before_one_is_listed(earlybird: Any, tmp_path: Path) -> None:
    words = [word for setting in SYNTHETIC for word in ("--set", setting)]
    command = ("sweep", "demo", "--folder", tmp_path, "--dry-run", *words)
    wrong = earlybird(*command, "--vary", "meta.foo=1,2")
    assert (wrong.code, wrong.out, "unknown setting 'meta.foo'" in wrong.err) == (2, "", True)
    assert "meta.ratio is -1" in earlybird(*command, "--vary", "meta.ratio=0.5,-1").err
    assert earlybird(*command, "--vary", "meta.ratio=0.5,1").out.count("\n") == 2
    assert not list(tmp_path.iterdir())


def test_each_seed_begins_with_its_own_net(tmp_path: Path) -> None:
    trials = seeded("demo-imta-finetune", (), tmp_path, (3, 5), origin=Path("/first/seed-{seed}"))
    planned = plan(trials, Place(data_elsewhere=True))
    ends = [job.arguments + job.elements[0].arguments[len(job.arguments) :] for job in planned.jobs.values()]
    assert [words[words.index("--from") + 1] for words in ends] == ["/first/seed-3", "/first/seed-5"]
    with pytest.raises(ValueError, match="give --from RUN"):
        plan(seeded("demo-imta-finetune", (), tmp_path, (3,)), Place(data_elsewhere=True))


def test_pods_see_the_folders_of_a_sweep_apart(tmp_path: Path) -> None:
    """runs here is /runs there: FOLDER/LABEL/seed-N keeps all of its parts."""
    home = tmp_path / "runs" / "home"
    trials = [
        trial
        for label in ("a", "b")
        for trial in seeded("demo-imta-finetune", (), home, (0, 1), label, tmp_path / "runs" / "first" / "seed-{seed}")
    ]
    jobs = plan(trials, Place(data_elsewhere=True)).jobs.values()
    there = [job.moved_to("/runs/") for job in jobs]
    names = ["a/seed-0", "a/seed-1", "b/seed-0", "b/seed-1"]
    assert [job.run_folder for job in there] == [f"/runs/home/{name}" for name in names]
    assert [job.origin for job in there] == [f"/runs/first/seed-{seed}" for seed in (0, 1, 0, 1)]


def test_a_sweep_of_both_sides_keeps_the_settings_of_one(earlybird: Any, tmp_path: Path) -> None:
    """Those of the meta step have no effect in the baseline, and are refused nowhere."""
    words = [word for setting in (*SYNTHETIC, "meta.lr=0.002", "weight_net.width=9") for word in ("--set", setting)]
    vary = ("--vary", "sample_weights.enabled=true,false")
    listed = earlybird("sweep", "demo", "--folder", tmp_path, *vary, *words, "--dry-run", "--json")
    assert len(json.loads(listed.out)) == 2, listed.err
