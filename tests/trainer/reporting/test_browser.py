"""The report in a real browser: whole, without a network, on a phone and on a wide screen."""

from __future__ import annotations

import html
import io
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from trainer.config import resolve, write_config
from trainer.reporting.comparison import compare, write_page
from trainer.reporting.report import write_report
from trainer.telemetry.prometheus import TelemetryConfig
from trainer.telemetry.telemetry import Telemetry

# The page in a frame of the phone's width (a headless window has a least width of its own), and what is seen of it.
FRAME = """<!doctype html><body style="margin:0"><iframe style="border:0;width:{width}px;height:9000px" srcdoc="{page}">
</iframe><script>addEventListener("load", () => {{
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  document.body.innerText = "SEEN" + JSON.stringify({{
    width: root.clientWidth, needed: root.scrollWidth,
    pictures: [...page.images].map(image => image.complete && image.naturalWidth > 0),
    wide: [...page.querySelectorAll("main, main > *")].filter(e => e.getBoundingClientRect().right > {width})
      .map(e => e.tagName),
    asked: page.defaultView.performance.getEntriesByType("resource").map(entry => entry.name),
    text: page.body.innerText.length}}) + "SEEN"; }});</script>"""


@pytest.fixture(scope="session")
def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium is installed (Debian: apt-get install chromium)")
    return found


@pytest.fixture(scope="session")
def report_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with every part: tables, published figures, curves of a run that was restarted, budgets."""
    run = tmp_path_factory.mktemp("report") / "cifar100-msdnet-5exits"
    run.mkdir()
    write_config(resolve("cifar100-msdnet-5exits", ["run.epochs=3"]), run / "config.json")
    exits: Any = [{"exit": k, "top1": 60.0 + k, "top5": 90.0, "loss": 1.0, "num_images": 10_000} for k in range(1, 6)]
    for first in (0, 20):
        telemetry = Telemetry(
            TelemetryConfig(), run, title="cifar100", num_iterations=60, num_epochs=3, stream=io.StringIO()
        )
        telemetry.start(first, num_classes=100, num_images=50_000)
        for iteration in range(first + 10, first + 41, 10):
            telemetry.train(
                {
                    "iteration": iteration, "epoch": iteration / 20, "learning_rate": 0.1,
                    "loss": [2.0, 1.8, 1.5, 1.2, 1.0],
                    "top1": [0.3, 0.4, 0.45, 0.5, 0.55], "meta_loss": 1.0, "weight_quantiles": [[0.5, 1.0, 1.5]] * 5,
                    "weight_easy": [1.0] * 5, "weight_hard": [1.0] * 5, "images": 1000, "num_iterations": 10,
                    "seconds": 2.0, "data_wait_seconds": 0.5, "meta_step_seconds": 1.0, "num_meta_steps": 20,
                    "images_per_second": 500.0,
                }
            )  # fmt: skip
        telemetry.bad_image("truncated", name="n01440764/a-rather-long-name-of-an-image-that-is-truncated.jpg")
        telemetry.evaluation(exits, split="val", iteration=first + 40, seconds=1.0)
        telemetry.close(status="completed")
    budgeted = [
        {"ratio": q / 20, "top1": 60.0, "heldout_top1": 61.0, "mul_adds": 1e7 * q, "exit_shares": [0.2] * 5}
        for q in range(1, 40)
    ]
    return write_report(
        run,
        {
            "iteration": 60, "split": "val", "num_heldout": 5000, "anytime": exits, "budgeted": budgeted,
            "mul_adds": [6.86e6, 14.35e6, 27.54e6, 41.71e6, 58.48e6],
        },
    )  # fmt: skip


def browse(chromium: str, page: str, width: int, tmp_path: Path) -> tuple[dict[str, Any], list[str]]:
    """(what is seen of the page at this width, what the console says)."""
    (tmp_path / "frame.html").write_text(FRAME.format(width=width, page=html.escape(page)))
    done = subprocess.run(
        [
            chromium,
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-component-update"),
            *("--disable-background-networking", "--disable-sync", "--enable-logging=stderr", "--v=0"),
            "--proxy-server=127.0.0.1:9",  # nobody is there: whatever the page asks the network for fails, and is told
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--window-size={max(width, 600)},3000",
            "--virtual-time-budget=3000",
            "--dump-dom",
            (tmp_path / "frame.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search("SEEN(.*)SEEN", done.stdout)
    assert found, done.stderr
    return json.loads(html.unescape(found[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.parametrize("width", [390, 1440])
def test_the_report_is_whole(chromium: str, report_page: Path, tmp_path: Path, width: int) -> None:
    seen, console = browse(chromium, report_page.read_text(), width, tmp_path)
    assert console == []
    assert seen["asked"] == [], "it asks the network"
    assert seen["width"] == width
    assert seen["needed"] <= width, f"the page scrolls sideways: {seen['wide']}"
    assert seen["pictures"]
    assert all(seen["pictures"])
    assert seen["text"] > 1000


@pytest.mark.parametrize("width", [390, 1440])
def test_runs_side_by_side_are_whole(chromium: str, report_page: Path, tmp_path: Path, width: int) -> None:
    page = write_page(compare([report_page.parent, report_page.parent]), tmp_path / "comparison.html")
    seen, console = browse(chromium, page.read_text(), width, tmp_path)
    assert (console, seen["asked"]) == ([], [])
    assert seen["needed"] <= width, f"the page scrolls sideways: {seen['wide']}"
    assert seen["pictures"] == [True, True]


def test_what_is_broken_is_seen(chromium: str, tmp_path: Path) -> None:
    page = """<!doctype html><img src="http://example.invalid/a.png"><p style="width:800px">wide</p>"""
    seen, console = browse(chromium, page + "<script>nothing()</script>", 390, tmp_path)
    assert seen["needed"] >= 800
    assert seen["pictures"] == [False]
    assert any("nothing is not defined" in line for line in console)
    assert seen["asked"] == ["http://example.invalid/a.png"]
