"""The rows of a run, on every way out of Telemetry at once."""

from __future__ import annotations

import io
import json
import socket
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from trainer.telemetry.jsonl import read_log, read_rows
from trainer.telemetry.metrics import METRICS
from trainer.telemetry.prometheus import TelemetryConfig
from trainer.telemetry.telemetry import Telemetry


def train_row(iteration: int, **changes: Any) -> dict[str, Any]:
    row = {
        "iteration": iteration,
        "epoch": iteration / 50,
        "learning_rate": 0.1,
        "loss": [2.5, 2.0],
        "top1": [0.25, 0.5],
        "meta_loss": 1.5,
        "weight_quantiles": [[0.7, 1.0, 1.3], [0.8, 1.1, 1.4]],
        "weight_easy": [0.9, 0.95],
        "weight_hard": [1.1, 1.05],
        "images": 1280,
        "num_iterations": 10,
        "seconds": 4.0,
        "data_wait_seconds": 0.5,
        "meta_step_seconds": 1.0,
        "num_meta_steps": 20,
        "images_per_second": 320.0,
    }
    return {**row, **changes}


EXITS: Any = [
    {"exit": 1, "top1": 30.0, "top5": 60.0, "loss": 2.0, "num_images": 1000},
    {"exit": 2, "top1": 40.0, "top5": 70.0, "loss": 1.5, "num_images": 1000},
]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _scrape(port: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def _telemetry(folder: Path, port: int = 0, **options: Any) -> Telemetry:
    return Telemetry(
        TelemetryConfig(port=port),
        folder,
        title="demo",
        num_iterations=100,
        num_epochs=2,
        stream=io.StringIO(),
        **options,
    )


def test_a_scrape_shows_the_run(tmp_path: Path) -> None:
    port = _free_port()
    telemetry = _telemetry(tmp_path, port)
    try:
        telemetry.start(0)
        for iteration in (10, 20):
            telemetry.train(train_row(iteration))
        telemetry.evaluation(EXITS, split="val", iteration=20, seconds=2.0)
        telemetry.checkpoint(20, seconds=1.0, folder=tmp_path / "step-0000020")
        telemetry.bad_image("truncated", row=7, iteration=20)
        telemetry.skipped_step("fp16_overflow", iteration=20)
        seen = _scrape(port)
    finally:
        telemetry.close()
    expected = {
        "images_total": 2560,
        "iterations_total": 20,
        "iteration": 20,
        "iterations_planned": 100,
        "epoch": 0.4,
        "data_wait_seconds_total": 1.0,
        "learning_rate": 0.1,
        "images_per_second": 320,
        "meta_loss": 1.5,
        "step_seconds_count": 20,
        "step_seconds_sum": 8.0,
        "meta_step_seconds_count": 40,
    }
    assert {name: seen[f"earlybird_{name}", ()] for name in expected} == pytest.approx(expected)
    assert seen["earlybird_step_seconds_bucket", (("le", "0.25"),)] == 0
    assert seen["earlybird_step_seconds_bucket", (("le", "0.5"),)] == 20
    assert seen["earlybird_exit_accuracy_ratio", (("exit", "2"), ("split", "train"))] == 0.5
    assert seen["earlybird_exit_accuracy_ratio", (("exit", "2"), ("split", "val"))] == 0.4
    assert seen["earlybird_sample_weight", (("exit", "1"), ("quantile", "0.95"))] == 1.3
    assert seen["earlybird_bad_samples_total", (("reason", "truncated"),)] == 1
    assert seen["earlybird_skipped_steps_total", (("reason", "fp16_overflow"),)] == 1
    assert seen["earlybird_badput_seconds_total", (("cause", "evaluation"),)] == 2.0
    assert 0 < seen["earlybird_goodput_ratio", ()] < 1
    assert 0 <= seen["earlybird_checkpoint_age_seconds", ()] < 60
    (build,) = [dict(labels) for name, labels in seen if name == "earlybird_build_info"]
    assert build["recipe"] == "demo"
    # Every name is in the table and every row of the table can be fed.
    plain = {name.removesuffix(end) for name, _ in seen for end in ("", "_bucket", "_count", "_sum")}
    assert {metric.name for metric in METRICS.values()} <= plain


def test_later_ranks_export_only_what_is_their_own(tmp_path: Path) -> None:
    port = _free_port()
    telemetry = _telemetry(tmp_path, port - 1, rank=9, local_rank=1)
    try:
        telemetry.start(0)
        telemetry.train(train_row(10))
        telemetry.bad_image("truncated", row=7)
        names = {name for name, _ in _scrape(port)}
    finally:
        telemetry.close()
    assert "earlybird_step_seconds_count" in names
    assert "earlybird_images_total" not in names, "summing over ranks would count every image once a rank"
    assert "earlybird_checkpoint_age_seconds" not in names
    assert not (tmp_path / "log.jsonl").exists()


def test_the_port_is_given_back_and_a_taken_one_is_refused(tmp_path: Path) -> None:
    port, threads = _free_port(), threading.active_count()
    first = _telemetry(tmp_path, port)
    with pytest.raises(ValueError, match=f"127.0.0.1:{port} .*--set telemetry.port=PORT"):
        _telemetry(tmp_path / "other", port)
    first.close()
    assert threading.active_count() == threads
    with pytest.raises(urllib.error.URLError):
        _scrape(port)
    _telemetry(tmp_path, port).close()


@pytest.mark.parametrize("port", [-1, 65_536])
def test_impossible_ports_are_refused(port: int) -> None:
    with pytest.raises(ValueError, match=rf"telemetry\.port is {port}"):
        TelemetryConfig(port=port)


def test_the_log_holds_every_row(tmp_path: Path) -> None:
    telemetry = _telemetry(tmp_path)
    telemetry.start(0, world_size=1)
    telemetry.train(train_row(10, meta_loss=None, weight_quantiles=None))
    telemetry.evaluation(EXITS, split="heldout", iteration=10, seconds=2.0)
    telemetry.close(status="completed", iteration=10)
    telemetry.close()
    rows = read_log(tmp_path / "log.jsonl")
    assert [row["event"] for row in rows] == ["start", "train", "eval", "end"]
    assert rows[1]["loss"] == [2.5, 2.0]
    assert rows[2]["exits"] == EXITS
    assert rows[3]["status"] == "completed"
    assert 0 < rows[3]["goodput_ratio"] < 1


def test_a_diverged_row_is_still_json(tmp_path: Path) -> None:
    telemetry = _telemetry(tmp_path)
    telemetry.start(0)
    telemetry.train(train_row(10, loss=[float("nan"), float("inf")]))
    telemetry.close()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert json.loads(lines[1], parse_constant=pytest.fail)["loss"] == [None, None]


def test_a_resumed_run_leaves_out_what_is_done_again(tmp_path: Path) -> None:
    first = _telemetry(tmp_path)
    first.start(0)
    for iteration in (10, 20, 30):
        first.train(train_row(iteration))
    # Killed: no end row, and a torn line.
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"event": "train", "iterat')
    second = _telemetry(tmp_path)
    second.start(20)
    second.train(train_row(30, loss=[1.0, 1.0]))
    second.close(status="completed", iteration=30)
    first.close()
    rows = read_log(tmp_path / "log.jsonl")
    assert [row["iteration"] for row in rows if row["event"] == "train"] == [10, 20, 30]
    assert [row["loss"][0] for row in rows if row["event"] == "train"] == [2.5, 2.5, 1.0]
    assert len([row for row in read_rows(tmp_path / "log.jsonl") if row["event"] == "train"]) == 4
    end = next(row for row in rows if row["event"] == "end")
    assert end["badput_seconds"]["lost"] == pytest.approx(3.5), "iterations 21 to 30 were trained twice"


def test_the_openmetrics_form_parses_too(tmp_path: Path) -> None:
    port = _free_port()
    telemetry = _telemetry(tmp_path, port)
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    )
    try:
        telemetry.start(0)
        telemetry.train(train_row(10))
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read().decode()
    finally:
        telemetry.close()
    assert text.endswith("# EOF\n")
    assert {f"earlybird_{name}" for name in ("images", "step_seconds", "build_info")} <= {
        family.name for family in openmetrics.text_string_to_metric_families(text)
    }
