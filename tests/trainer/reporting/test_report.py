from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from trainer.config import resolve, write_config
from trainer.reporting.report import write_report
from trainer.telemetry.prometheus import TelemetryConfig
from trainer.telemetry.telemetry import Telemetry

TRAIN: dict[str, Any] = {
    "epoch": 1.0, "learning_rate": 0.1, "loss": [1.0] * 5, "top1": [0.5] * 5, "meta_loss": 1.0,
    "weight_quantiles": [[0.5, 1.0, 1.5]] * 5, "weight_easy": [1.0] * 5, "weight_hard": [1.0] * 5, "images": 1000,
    "num_iterations": 10, "seconds": 2.0, "data_wait_seconds": 0.5, "meta_step_seconds": 1.0, "num_meta_steps": 20,
    "images_per_second": 500.0,
}  # fmt: skip
EXITS: Any = [{"exit": k, "top1": 60.0 + k, "top5": 90.0, "loss": 1.0, "num_images": 10_000} for k in range(1, 6)]


def _run(folder: Path, recipe: str, *settings: str, num_classes: int = 100, num_images: int = 50_000) -> Path:
    write_config(resolve(recipe, list(settings)), folder / "config.json")
    telemetry = Telemetry(
        TelemetryConfig(), folder, title=recipe, num_iterations=20, num_epochs=2, stream=io.StringIO()
    )
    telemetry.start(0, num_classes=num_classes, num_images=num_images)
    telemetry.train({**TRAIN, "iteration": 10})
    telemetry.bad_image("truncated", name="<b>.jpg", iteration=11)
    telemetry.evaluation(EXITS, split="val", iteration=20, seconds=1.0)
    telemetry.close(status="completed")
    return folder


EVALUATION: dict[str, Any] = {
    "iteration": 20,
    "split": "val",
    "num_heldout": 5000,
    "mul_adds": [6.86e6, 14.35e6, 27.54e6, 41.71e6, 58.48e6],
    "anytime": EXITS,
    "budgeted": [
        {"ratio": q / 20, "top1": 60.0, "heldout_top1": 61.0, "mul_adds": 1e7 * q, "exit_shares": [0.2] * 5}
        for q in range(1, 40)
    ],
}


class _Page(HTMLParser):
    """Text, and whether every tag that opens closes."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.sources: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data.split()


def _read(path: Path) -> tuple[str, _Page]:
    page = _Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    return " ".join(page.text), page


def test_published_figures_stand_beside_ours(tmp_path: Path) -> None:
    text, page = _read(write_report(_run(tmp_path, "cifar100-msdnet-5exits"), EVALUATION))
    assert "1 6.86 M 61.00 62.61 -1.61 61.12 90.00 1.0000" in text
    assert "published (300 epochs); published, unweighted (300 epochs)." in text
    assert "otherwise" not in text
    assert '<td class="down">-1.61</td>' in (tmp_path / "report.html").read_text()
    assert "10,000 images of the split val" in text
    assert "This run has its recipe's settings." in text
    assert "5,000 images held out" in text
    assert "1 unreadable training images replaced (truncated)" in text
    assert len(page.sources) == 2
    assert all(source.startswith("data:image/svg+xml;base64,") for source in page.sources), "self-contained"
    assert (tmp_path / "curves.png").is_file()


def test_what_differs_from_the_recipe_is_said(tmp_path: Path) -> None:
    run = _run(tmp_path, "cifar100-msdnet-5exits", "run.epochs=3", "weight_net.width=10", "telemetry.port=9000")
    text, _ = _read(write_report(run, EVALUATION))
    assert "run.epochs 3 (recipe: 300)" in text
    assert "telemetry.port 9000 (" not in text
    assert "1 6.86 M 61.00 62.06 -1.06" in text, "the published row of the 1x10 weight net"
    assert "otherwise than published: run.epochs 3 for 300." in text
    assert 'class="down"' not in (tmp_path / "report.html").read_text(), "not like with like: no colour"


@pytest.mark.parametrize(
    ("images", "split", "said"),
    [
        ({"num_images": 45_000}, "val", "training images 45000 for 50000"),
        ({}, "heldout", "scored on heldout for val"),
    ],
)
def test_what_differs_from_the_published_images_is_said(
    tmp_path: Path, images: dict[str, int], split: str, said: str
) -> None:
    run = _run(tmp_path, "cifar100-msdnet-5exits", **images)
    text, _ = _read(write_report(run, EVALUATION | {"split": split}))
    assert "1 6.86 M 61.00 62.61 -1.61" in text
    assert f"This run was trained or scored otherwise than published: {said}." in text


@pytest.mark.parametrize(
    ("recipe", "settings", "num_classes", "said"),
    [
        ("imagenet-msdnet-step4", ["model.step=5", "run.epochs=1"], 1000, "model.step 5 for 4, run.epochs 1 for 100"),
        ("cifar100-msdnet-5exits", [], 10, "classes 10 for 100"),
    ],
)
def test_no_figure_stands_beside_another_net(
    tmp_path: Path, recipe: str, settings: list[str], num_classes: int, said: str
) -> None:
    run = _run(tmp_path, recipe, *settings, num_classes=num_classes)
    text, _ = _read(write_report(run, EVALUATION))
    assert "1 6.86 M 61.00 90.00 1.0000" in text, "neither published nor difference"
    assert f"of another net or other classes, and is not shown: {said}" in text
    assert "No accuracy is published" not in text


def test_a_run_nobody_published_and_nobody_scored(tmp_path: Path) -> None:
    text, page = _read(write_report(_run(tmp_path, "demo")))
    assert "No accuracy is published for this recipe." in text
    assert "1 61.00 90.00 1.0000" in text, "the log's newest evaluation"
    assert "Budgeted batch" not in text
    assert len(page.sources) == 1
    assert not (tmp_path / "curves.png").exists()


def test_classes_of_a_long_tail(tmp_path: Path) -> None:
    classes = [
        {"name": f"<class {c}>", "num_train": size, "num_images": 100, "top1": [10.0 + c] * 5}
        for c, size in enumerate((5, 500, 50))
    ]
    shots = [
        {"group": group, "num_classes": 1, "num_images": 100, "top1": [11.0 + k] * 5}
        for k, group in enumerate(("many", "medium", "few"))
    ]
    run = _run(tmp_path, "cifar100-lt-msdnet-5exits")
    text, page = _read(write_report(run, EVALUATION | {"per_class": classes, "shots": shots}))
    assert "many (above 100) 1 11.00 11.00" in text
    assert "few (below 20) 1 13.00" in text
    assert "<class 1> 500 11.0" in text
    assert text.index("<class 1>") < text.index("<class 2>") < text.index("<class 0>"), "largest first"
    assert len(page.sources) == 3, "a picture of its own"


def test_a_run_that_has_just_begun(tmp_path: Path) -> None:
    write_config(resolve("demo", []), tmp_path / "config.json")
    text, _ = _read(write_report(tmp_path))
    assert "Not evaluated yet." in text


def test_refuses_another_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} is no run folder")):
        write_report(tmp_path)
