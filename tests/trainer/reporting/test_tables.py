"""Rows of a published table beside runs: differences between like and like alone, and what differs by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.config import resolve, write_config
from trainer.reporting.published_tables import row_of, twin_of
from trainer.reporting.tables import accuracy_table

TOP1 = (60.0, 66.0, 70.0, 72.0, 74.0)


def run(
    folder: Path,
    *settings: str,
    recipe: str = "cifar100-msdnet-5exits",
    num_classes: int = 100,
    num_train: int = 450,
    num_heldout: int = 5000,
) -> Path:
    folder.mkdir()
    write_config(resolve(recipe, list(settings)), folder / "config.json")
    classes = [{"name": str(c), "num_train": num_train, "num_images": 100} for c in range(num_classes)]
    exits = [{"exit": k, "top1": value} for k, value in enumerate(TOP1, start=1)]
    evaluation = {"split": "val", "anytime": exits, "mul_adds": [], "per_class": classes, "num_heldout": num_heldout}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    return folder


def of(name: str, runs: list[Path]) -> dict[str, Any]:
    (row,) = [row for row in accuracy_table("weight-net", runs) if row["name"] == name]
    return row


def test_like_beside_like(tmp_path: Path) -> None:
    row = of("1x500", [run(tmp_path / f"{seed}", f"seed={seed}") for seed in range(2)])
    assert row["differs"] == {}
    assert row["difference"] == pytest.approx([-2.61, 0.29, 0.86, -0.12, 0.64])
    assert row["spread"] == [0.0] * 5
    assert of("baseline", [])["differs"] == {}


def test_other_images_are_named(tmp_path: Path) -> None:
    few = of("1x500", [run(tmp_path / "few", "data.heldout=0", num_train=10, num_heldout=0)])
    assert few["differs"] == {"data.heldout": [0.0, 0.1], "training images": [1000, 50_000]}
    assert few["difference"] is not None
    other = of("1x500", [run(tmp_path / "other", num_classes=10, num_train=4500)])
    assert (other["differs"], other["difference"]) == ({"classes": [10, 100]}, None)
    (tmp_path / "few" / "log.jsonl").write_text(
        json.dumps({"event": "start", "iteration": 0, "num_classes": 7, "num_images": 8}) + "\n"
    )
    assert of("1x500", [tmp_path / "few"])["differs"]["classes"] == [7, 100], "the log knows what trained"
    with pytest.raises(ValueError, match="had other images than one another"):
        accuracy_table("weight-net", [run(tmp_path / "a", "seed=1"), run(tmp_path / "b", "seed=2", num_classes=10)])


def test_another_net_has_no_difference(tmp_path: Path) -> None:
    row = of("1x500", [run(tmp_path / "net", "model.growth=8")])
    assert (row["differs"], row["difference"]) == ({"model.growth": [8, 6]}, None)
    assert row["top1"] == list(TOP1)


def test_a_weighted_recipe_without_weights_is_a_baseline(tmp_path: Path) -> None:
    rows = accuracy_table("weight-net", [run(tmp_path / "off", "sample_weights.enabled=false")])
    assert [row["name"] for row in rows if row["runs"]] == ["baseline"]


@pytest.mark.parametrize(
    ("recipe", "settings", "own", "twin"),
    [
        ("cifar100-msdnet-5exits", ["weight_net.depth=2"], 62.95, 61.12),
        ("cifar100-msdnet-5exits-baseline", [], 61.12, None),
        ("imagenet-msdnet-step6", [], 60.05, 58.69),
        ("imagenet-msdnet-step6", ["optim.label_smoothing=0.1"], 61.41, None),
        ("imagenet-msdnet-step6", ["optim.label_smoothing=0.05"], None, None),
        ("cifar10-msdnet-5exits", [], None, None),
        ("cifar100-lt-msdnet-5exits", [], None, None),
    ],
)
def test_the_row_a_run_is_meant_by(recipe: str, settings: list[str], own: float | None, twin: float | None) -> None:
    rows = (row_of(resolve(recipe, settings)), twin_of(resolve(recipe, settings)))
    assert tuple(row and row.published.top1[0] for row in rows) == (own, twin)
