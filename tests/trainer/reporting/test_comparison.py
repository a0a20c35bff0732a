from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from trainer.config import resolve, write_config
from trainer.reporting.comparison import write_comparison


def run(folder: Path, top1: list[float], *settings: str, mul_adds: tuple[float, ...] = (1e6, 2e6)) -> Path:
    folder.mkdir()
    write_config(resolve("demo", list(settings)), folder / "config.json")
    exits = [{"exit": k, "top1": value} for k, value in enumerate(top1, start=1)]
    evaluation = {"split": "val", "anytime": exits, "mul_adds": mul_adds[: len(top1)]}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "log.jsonl").write_text(
        json.dumps({"event": "eval", "iteration": 5, "split": "val", "exits": exits}) + "\n"
    )
    return folder


def text_of(page: Path) -> str:
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page.read_text(), flags=re.S).split())


def test_seeds_are_one_row_with_mean_and_spread(tmp_path: Path) -> None:
    off = "sample_weights.enabled=false"
    runs = [
        run(tmp_path / "b0", [50.0, 60.0], off, "seed=0", "telemetry.port=9400"),
        run(tmp_path / "w0", [52.0, 66.0], "seed=0"),
        run(tmp_path / "b1", [54.0, 62.0], off, "seed=1"),
    ]
    page = write_comparison(runs, tmp_path / "page" / "both.html")
    text = text_of(page)
    assert "sample_weights.enabled False 2 52.00 &plusmn; 2.83 61.00 &plusmn; 1.41" in text
    assert "sample_weights.enabled True 1 52.00 66.00" in text
    assert "sample_weights.enabled True, minus sample_weights.enabled False +0.00 +5.00" in text
    assert "earlybird train demo --set sample_weights.enabled=False --set seed=1" in text
    sources = re.findall(r'(?:src|href)="([^"]{20})', page.read_text())
    assert len(sources) == 2
    assert all(source.startswith("data:image/svg+xml") for source in sources), "self-contained"
    assert {path.name for path in page.parent.iterdir()} == {"both.html", "both-anytime.png", "both-learning.png"}


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    good = run(tmp_path / "good", [50.0, 60.0])
    with pytest.raises(ValueError, match="other numbers"):
        write_comparison([good, run(tmp_path / "three", [1.0, 2.0, 3.0])], tmp_path / "page.html")
    with pytest.raises(ValueError, match="is no run folder"):
        write_comparison([good, tmp_path / "none"], tmp_path / "page.html")
    raw = run(tmp_path / "raw", [1.0, 2.0])
    (raw / "evaluation.json").unlink()
    assert write_comparison([good, raw], tmp_path / "page.html"), "the log's newest evaluation"
    (raw / "log.jsonl").unlink()
    with pytest.raises(ValueError, match=f"run earlybird evaluate {raw}"):
        write_comparison([good, raw], tmp_path / "page.html")


def test_the_command(earlybird: Any, tmp_path: Path) -> None:
    runs = [run(tmp_path / name, [50.0, 60.0], f"run.epochs={n}") for n, name in ((1, "a"), (2, "b"))]
    outcome = earlybird("report", *runs, "--out", tmp_path / "c.html")
    assert (outcome.code, outcome.out) == (0, f"Report: {tmp_path / 'c.html'}\n")
    refused = earlybird("report", runs[0], "--out", tmp_path / "c.html")
    assert (refused.code, refused.out) == (2, "")
    assert "--out" in refused.err
