"""The rows of a run, on every way out of Telemetry at once."""

from __future__ import annotations

import gc
import io
import json
import socket
import threading
import tracemalloc
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from trainer.telemetry.jsonl import read_log, read_rows
from trainer.telemetry.metrics import METRICS, Metrics
from trainer.telemetry.prometheus import PORTS_TRIED, RunRegistry, TelemetryConfig
from trainer.telemetry.targets import read_address
from trainer.telemetry.telemetry import Telemetry


def train_row(iteration: int, **changes: Any) -> dict[str, Any]:
    row = {
        "iteration": iteration,
        "epoch": iteration / 50,
        "learning_rate": 0.1,
        "weight_net_learning_rate": 0.001,
        "checkpoint_interval_seconds": 20.0,
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


def _scrape(port: int, rank: str = "0") -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        samples = [sample for family in families for sample in family.samples]
    found = {}
    for sample in samples:
        labels = dict(sample.labels)
        assert (labels.pop("run"), labels.pop("rank")) == ("some-run", rank)
        found[sample.name, tuple(sorted(labels.items()))] = sample.value
    return found


def _telemetry(folder: Path, port: int = 0, **options: Any) -> Telemetry:
    return Telemetry(
        TelemetryConfig(port=port, run="some-run"),
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
        telemetry.describe([(0, "here:1")], [5.0, 7.0], ["data", "train"])
        for iteration in (10, 20):
            telemetry.train(train_row(iteration))
        telemetry.epoch_ended()
        telemetry.evaluation(EXITS, split="val", iteration=20, seconds=2.0)
        telemetry.checkpoint(20, seconds=1.0, folder=tmp_path / "step-0000020", write_seconds=3.0)
        telemetry.checkpoint_failed(20, "the disk is full")
        telemetry.rolled_back(left_at=20)
        telemetry.stalled("data", 61.0)
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
        "eta_seconds": 32.0,
        "ranks": 1,
        "weight_net_learning_rate": 0.001,
        "checkpoint_interval_seconds": 20.0,
        "checkpoint_write_seconds": 3.0,
        "checkpoint_failures_total": 1,
        "rollbacks_total": 1,
        "step_median_seconds": 0.4,
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
    assert seen["earlybird_exit_loss", (("exit", "2"), ("split", "val"))] == 1.5
    assert seen["earlybird_exit_info", (("exit", "2"), ("previous", "1"))] == 1
    assert seen["earlybird_exit_mul_adds", (("exit", "2"),)] == 7
    assert seen["earlybird_sample_weight_easy", (("exit", "1"),)] == 0.9
    assert seen["earlybird_sample_weight_hard", (("exit", "1"),)] == 1.1
    assert seen["earlybird_stalls_total", (("cause", "data"),)] == 1
    assert seen["earlybird_stalls_total", (("cause", "train"),)] == 0, "a rise from nothing is none to Prometheus"
    assert seen["earlybird_bad_samples_total", (("reason", "truncated"),)] == 1
    assert seen["earlybird_bad_samples_total", (("reason", "damaged"),)] == 0
    assert seen["earlybird_skipped_steps_total", (("reason", "fp16_overflow"),)] == 1
    assert seen["earlybird_badput_seconds_total", (("cause", "evaluation"),)] == 2.0
    assert 0 < seen["earlybird_goodput_ratio", ()] < 1
    assert 0 <= seen["earlybird_checkpoint_age_seconds", ()] < 60
    (build,) = [dict(labels) for name, labels in seen if name == "earlybird_build_info"]
    assert build["recipe"] == "demo"
    # Every name is in the table and every row of the table can be fed.
    plain = {name.removesuffix(end) for name, _ in seen for end in ("", "_bucket", "_count", "_sum")}
    on_a_gpu = {name for name in METRICS if name.startswith("gpu_")}
    assert {metric.name for name, metric in METRICS.items() if name not in on_a_gpu} <= plain


def test_later_ranks_export_only_what_is_their_own(tmp_path: Path) -> None:
    port = _free_port()
    telemetry = _telemetry(tmp_path, port - 1, rank=9, local_rank=1)
    try:
        telemetry.start(0)
        telemetry.train(train_row(10))
        telemetry.bad_image("truncated", row=7)
        names = {name for name, _ in _scrape(port, rank="9")}
    finally:
        telemetry.close()
    assert "earlybird_step_seconds_count" in names
    assert "earlybird_images_total" in names, "of this rank; the run's are their sum"
    assert "earlybird_images_per_second" not in names, "it is the run's already: summing over ranks would be wrong"
    assert "earlybird_checkpoint_age_seconds" not in names
    assert not (tmp_path / "log.jsonl").exists()


def test_the_port_is_given_back_and_a_taken_one_is_passed_over(tmp_path: Path) -> None:
    port, threads = _free_port(), threading.active_count()
    first = _telemetry(tmp_path, port)
    second = _telemetry(tmp_path / "other", port)
    first.start(3)
    second.start(5)
    url = read_address(tmp_path / "other")
    assert url is not None
    taken = int(url.removesuffix("/metrics").rpartition(":")[2])
    assert port < taken < port + PORTS_TRIED
    assert _scrape(port)["earlybird_iteration", ()] == 3
    assert _scrape(taken)["earlybird_iteration", ()] == 5
    first.close()
    second.close()
    assert threading.active_count() == threads
    assert read_address(tmp_path) is None
    with pytest.raises(urllib.error.URLError):
        _scrape(port)
    _telemetry(tmp_path, port).close()


def test_the_targets_follow_the_run(tmp_path: Path) -> None:
    """Its file names every rank while the run lasts; it goes when the run ends well and stays when it does not."""
    config = TelemetryConfig(port=_free_port(), targets=str(tmp_path / "targets"), host="node7")
    for end, stays in (({"status": "completed"}, False), ({}, True)):
        telemetry = Telemetry(config, tmp_path / "run-5", stream=io.StringIO())
        telemetry.describe([(1, "node8:9"), (0, str(telemetry.target))], [], [])
        file = tmp_path / "targets" / "run-5.json"
        assert json.loads(file.read_text()) == [
            {"targets": [f"node7:{config.port}"], "labels": {"run": "run-5", "rank": "0"}},
            {"targets": ["node8:9"], "labels": {"run": "run-5", "rank": "1"}},
        ]
        telemetry.close(**end)
        assert file.exists() == stays


def test_ten_thousand_log_steps_take_no_more_memory(tmp_path: Path) -> None:
    metrics = Metrics()
    registry = RunRegistry(metrics, "run", 0)

    def steps(number: int) -> int:
        for step in range(number):
            metrics.add("images_total", 64)
            metrics.set("iteration", step)
            metrics.set("exit_loss", step / 7, exit=1 + step % 5, split="train")
            metrics.observe("step_seconds", step % 13 / 10)
            if step % 100 == 0:
                generate_latest(registry)
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        before = steps(1000)
        after = steps(10_000)
    finally:
        tracemalloc.stop()
    assert after - before < 20_000, "bytes"


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
    assert end["badput_seconds"]["lost_work"] == pytest.approx(3.5), "iterations 21 to 30 were trained twice"


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
