"""A run seen from outside, through its endpoint alone."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from trainer.telemetry import watch as watching
from trainer.telemetry.prometheus import TelemetryConfig
from trainer.telemetry.scrape import scrape
from trainer.telemetry.targets import read_address
from trainer.telemetry.telemetry import Telemetry
from trainer.telemetry.watch import drawn, health, line, sparkline, watch

ROW: dict[str, Any] = {
    "iteration": 25,
    "epoch": 0.5,
    "learning_rate": 0.1,
    "loss": [2.5, 2.0],
    "top1": [0.25, 0.5],
    "meta_loss": 1.5,
    "weight_quantiles": None,
    "weight_easy": None,
    "weight_hard": None,
    "images": 1280,
    "num_iterations": 10,
    "seconds": 4.0,
    "data_wait_seconds": 0.5,
    "meta_step_seconds": 1.0,
    "num_meta_steps": 20,
    "images_per_second": 320.0,
}
EXITS: Any = [
    {"exit": 1, "top1": 30.0, "top5": 60.0, "loss": 2.0, "num_images": 1000},
    {"exit": 2, "top1": 40.0, "top5": 70.0, "loss": 1.5, "num_images": 1000},
]


def begun(folder: Path, port: int) -> Telemetry:
    telemetry = Telemetry(
        TelemetryConfig(port=port), folder, title="demo", num_iterations=100, num_epochs=2, stream=io.StringIO()
    )
    telemetry.start(0)
    return telemetry


@pytest.fixture
def run(tmp_path: Path, free_port: int) -> Iterator[Telemetry]:
    telemetry = begun(tmp_path / "some-run", free_port)
    yield telemetry
    telemetry.close()


def shown(page: Any) -> str:
    console = Console(file=io.StringIO(), width=80)
    console.print(page)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_one_look(run: Telemetry, tmp_path: Path, earlybird: Any) -> None:
    run.train(ROW)
    looked = earlybird("watch", tmp_path / "some-run", "--once")
    assert looked.out == "some-run  iteration 25/100  epoch 0.50  images/s 320  left 0:00:30  train top-1 25.0 50.0\n"
    run.evaluation(EXITS, split="val", iteration=25, seconds=1.0)
    found = earlybird("watch", f"http://{run.target}", "--once", "--json").json
    assert (found["run"], found["recipe"], found["meta_loss"], found["eta_seconds"]) == ("some-run", "demo", 1.5, 30.0)
    assert [(row["val_top1"], row["train_top1"], row["val_loss"]) for row in found["exits"]] == [
        (0.3, 0.25, 2.0),
        (0.4, 0.5, 1.5),
    ]


def test_a_number_that_is_none_is_null(run: Telemetry, earlybird: Any) -> None:
    run.train(ROW | {"meta_loss": float("nan")})
    looked = earlybird("watch", f"http://{run.target}", "--once", "--json")
    assert json.loads(looked.out, parse_constant=pytest.fail)["meta_loss"] is None


def test_the_page_of_a_terminal(run: Telemetry) -> None:
    url = f"http://{run.target}/metrics"
    empty = shown(drawn(scrape(url), [0.0]))
    assert "0/100  epoch 0.00  left -" in empty, "before the first log step"
    run.train(ROW)
    run.evaluation(EXITS, split="val", iteration=25, seconds=1.0)
    run.bad_image("truncated", row=3)
    page = shown(drawn(scrape(url), [160.0, 320.0]))
    assert "25/100  epoch 0.50  left 0:00:30" in page
    assert "320 images/s  ▅█  median 240" in page
    assert "█" * 12 + "░" * 18 + "  40.00  50.00  2.000" in page, "the second exit: 40 % of 30 blocks"
    assert "wait 12.5%" in page
    assert "unreadable images 1" in page
    assert "stalls" not in page, "what did not happen takes no room"
    assert "unreadable" not in health(scrape(url).__class__({}))
    assert line(scrape(url)).endswith("val top-1 30.0 40.0")


def test_a_run_is_followed_over_a_restart_until_it_ends(
    tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, it does not answer for a while; started again, it is found at its new port."""
    monkeypatch.setattr(watching, "PATIENCE", 60.0)
    folder, out = tmp_path / "some-run", io.StringIO()
    first = begun(folder, free_port)
    follower = threading.Thread(target=watch, args=(str(folder),), kwargs={"every": 0.05, "out": out, "as_json": True})
    follower.start()

    def seen(iteration: int) -> bool:
        return any(json.loads(row)["iteration"] == iteration for row in out.getvalue().splitlines())

    def wait_for(iteration: int) -> None:
        end = time.monotonic() + 30
        while not seen(iteration):
            assert time.monotonic() < end
            time.sleep(0.02)

    first.train(ROW)
    wait_for(25)
    address = folder / "metrics" / "rank-0.json"
    left_behind = address.read_text()
    first.close()
    assert read_address(folder) is None
    follower.join(30)
    assert not follower.is_alive(), "an address that was taken back is the end"

    address.write_text(left_behind)  # as SIGKILL leaves it
    follower = threading.Thread(target=watch, args=(str(folder),), kwargs={"every": 0.05, "out": out, "as_json": True})
    follower.start()
    second = begun(folder, free_port + 1)
    second.train(ROW | {"iteration": 35})
    wait_for(35)
    second.close(status="completed")
    follower.join(30)
    assert not follower.is_alive()


def test_what_cannot_be_watched(
    earlybird: Any, tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(target: object, *said: str) -> None:
        looked = earlybird("watch", target, "--once")
        assert looked.code == 2
        assert looked.out == ""
        assert looked.err.count("\n") == 1
        assert [word for word in said if word not in looked.err] == []

    refused(tmp_path, "has no metrics endpoint", "--set telemetry.port=9400")
    refused(f"http://127.0.0.1:{free_port}", "does not answer", "refused")
    server = HTTPServer(("127.0.0.1", free_port), _Page)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        refused(f"http://127.0.0.1:{free_port}", "not with a run's metrics")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Page(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>a page { of another server</html>\n")

    def log_message(self, *_: object) -> None:
        pass


def test_a_sparkline_begins_at_nothing() -> None:
    assert sparkline([0, 1, 2, 4]) == "▁▃▅█"
    assert sparkline([0.0, 0.0]) == "▁▁"
    assert sparkline([]) == ""
