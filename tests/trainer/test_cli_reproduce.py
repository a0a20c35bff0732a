"""`earlybird reproduce` and `earlybird tune`: from runs that were really trained, if only for a moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainer.evaluation.thresholds import read_budgets

NET = ("data.image_size=32", "data.source=synthetic", "data.synthetic_images=80", "data.synthetic_classes=4")
SMALL = (*NET, "model.first_channels=4", "model.growth=2", "optim.update_batch=8", "run.epochs=1")


def test_collects_runs_of_a_table(earlybird: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = [word for setting in (*SMALL, "weight_net.width=10") for word in ("--set", setting)]
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
