"""`earlybird reproduce` and `earlybird tune`: from runs that were really trained, if only for a moment."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from trainer.config import resolve, write_config
from trainer.doctor import forecast as doctor_forecast
from trainer.evaluation.thresholds import read_budgets
from trainer.reporting.published_tables import accuracy_rows
from trainer.run import trials as trials_room
from trainer.run.trials import Trial

NET = ("data.image_size=32", "data.source=synthetic", "data.synthetic_images=80", "data.synthetic_classes=4")
SMALL = (*NET, "model.first_channels=4", "model.growth=2", "optim.update_batch=8", "run.epochs=1")


def test_collects_runs_of_a_table(earlybird: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = words_of((*SMALL, "weight_net.width=10"))
    trained = earlybird("train", "cifar100-msdnet-5exits", "--run", run, "--device", "cpu", "--json", *words)
    assert trained.code == 0
    done = earlybird("reproduce", "weight-net", "--from", run, "--json")
    rows = {row["name"]: row for row in done.json["rows"]}
    assert list(rows) == ["baseline", "1x10", "1x100", "1x500", "1x1000", "2x500", "4x500"]
    assert rows["1x100"]["top1"] is None
    assert rows["1x10"]["top1"] == [row["top1"] for row in trained.json["exits"]]
    assert rows["1x10"]["difference"] is None, "another net, which tells 4 classes apart"
    differs = rows["1x10"]["differs"]
    assert (differs["run.epochs"], differs["classes"], differs["training images"]) == ([1, 300], [4, 100], [80, 50_000])
    said = (
        "1x10 was trained otherwise than published, on another net or other classes, so that no difference is shown: "
    )
    assert said in earlybird("reproduce", "weight-net", "--from", run).out
    assert "is of no row of table imagenet" in earlybird("reproduce", "imagenet", "--from", run).err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("cost", "--seeds", 3, "--yes"), "--seeds, --yes have no effect on reproduce cost"),
        (("cost", "--from", "runs/a"), "--from has no effect on reproduce cost"),
        (("weight-net", "--from", "runs/a", "--target", "slurm"), "--target has no effect beside --from"),
        (("weight-net", "--from", "runs/a", "--set", "run.epochs=1", "--data", "x"), "--data, --set have no effect"),
        (("weight-net", "--data-elsewhere"), "add --yes to train unmeasured"),
    ],
)
def test_options_without_effect_are_refused(earlybird: Any, words: tuple[object, ...], said: str) -> None:
    refused = earlybird("reproduce", *words)
    assert (refused.code, refused.out, said in refused.err) == (2, "", True), refused.err


@pytest.fixture
def ask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[object, ...]:
    """reproduce weight-net with nets so small that a forecast takes a moment."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(doctor_forecast, "peak_memory_mb", lambda *_: 1.0)  # processes of their own, unread here
    return ("reproduce", "weight-net", "--folder", tmp_path, "--device", "cpu", "--steps", 6, *words_of(SMALL))


def test_the_forecast_names_rows_images_and_device(earlybird: Any, ask: tuple[object, ...]) -> None:
    asked = earlybird(*ask)
    assert asked.code == 1
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in asked.out.splitlines() if "│" in line]
    assert [row[:4] for row in cells if row[1]] == [["baseline", "1", "1", "72"], [cells[1][0], "6", "1", "72"]]
    assert "".join(row[0] for row in cells[1:]).replace(" ", "") == "1x10,1x100,1x500,1x1000,2x500,4x500"
    said = "with 72 training images of 4 classes (published: 50,000 with those held out, of 100)."
    assert f"hours of 1 x cpu, measured here, {said}" in asked.out
    assert "those of a GPU need the measurement there, by earlybird reproduce weight-net\n" in asked.out
    assert asked.out.endswith("Nothing was started: --yes starts it.\n")
    found = earlybird(*ask, "--target", "slurm", "--json").json
    assert [(row["rows"][0], row["runs"], row["images"]) for row in found["forecast"]] == [
        ("baseline", 1, 72),
        ("1x10", 6, 72),
    ]
    assert found["device_hours"] == sum(row["device_hours"] for row in found["forecast"])


def test_yes_forecasts_trains_what_is_missing_and_prints_the_table(
    earlybird: Any, ask: tuple[object, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, *others = rows = accuracy_rows("weight-net")
    run = tmp_path / first.name
    assert earlybird("train", first.recipe, "--run", run, "--device", "cpu", *words_of(SMALL)).code == 0
    for row in others:  # the same net by other settings: seven trainings would tell no more
        shutil.copytree(run, tmp_path / row.name)
        write_config(resolve(row.recipe, [*row.settings, *SMALL]), tmp_path / row.name / "config.json")
    done = earlybird(*ask, "--yes", "--json")
    assert done.code == 0, done.err  # the runs are complete: none is measured or trained again
    assert [row["runs"] for row in done.json["rows"]] == [[str(tmp_path / row.name)] for row in rows]
    assert "forecast" not in done.json

    (tmp_path / "1x10" / "summary.json").unlink()
    monkeypatch.setattr(trials_room, "run_trials", started)
    stopped = earlybird(*ask, "--yes")
    assert (stopped.code, "7 runs were started" in stopped.err) == (2, True), stopped.err
    assert "hours of 1 x cpu, measured here" in stopped.out, "the forecast came before"
    assert "Nothing was started" not in stopped.out


def started(trials: Sequence[Trial], *_: object) -> None:
    raise ValueError(f"{len(trials)} runs were started")


def words_of(settings: Sequence[str]) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


def test_unknown_table(earlybird: Any) -> None:
    done = earlybird("reproduce", "imagnet")
    assert (done.code, "did you mean imagenet?" in done.err) == (2, True)


def test_tune_chooses_on_heldout_images_and_keeps_thresholds(earlybird: Any, tmp_path: Path) -> None:
    for ratio in ("0.5", "0.75"):
        assert earlybird.train(tmp_path / f"ratio-{ratio}", f"meta.ratio={ratio}").code == 0
    settings = [word for word in earlybird.arguments(tmp_path)[5:] if word not in ("cpu", "--json")]
    ask = ("tune", "demo", "--ratios", "0.5,0.75", "--folder", tmp_path, "--device", "cpu", "--json")
    other = earlybird(*ask, *settings, "--set", "run.epochs=9")
    assert (other.code, "run.epochs is 2 there and 9 here" in other.err) == (2, True)
    done = earlybird(*ask, *settings)
    assert done.code == 0, done.err  # the runs are complete: none is trained again
    rows = done.json["rows"]
    assert [row["ratio"] for row in rows] == [0.5, 0.75]
    assert done.json["chosen"] == max(rows, key=lambda row: (row["score"], -row["ratio"]))["ratio"]
    assert (tmp_path / "tune.png").read_bytes()[:4] == b"\x89PNG"
    kept = json.loads((tmp_path / "ratio-0.5" / "thresholds.json").read_text())
    assert len(kept["budgets"]) == 39
    assert kept["budgets"][0]["thresholds"][-1] == -1e8
    assert kept["num_heldout"] == done.json["num_heldout"] == 8
    assert read_budgets(tmp_path / "ratio-0.5", kept["iteration"]) == kept["budgets"]
    assert "unweighted" in earlybird("tune", "demo-baseline", "--folder", tmp_path).err
