"""Pushing to a gateway: what it gets, and that nothing stays there."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import StreamRequestHandler, ThreadingTCPServer

import pytest

from trainer.telemetry.prometheus import TelemetryConfig
from trainer.telemetry.telemetry import Telemetry


@dataclass
class Gateway:
    """What a Pushgateway would hold: the text of every group by its path."""

    url: str = ""
    groups: dict[str, str] = field(default_factory=dict)
    num_pushes: int = 0


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    held = Gateway()

    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            held.groups[self.path] = self.rfile.read(int(self.headers["Content-Length"])).decode()
            held.num_pushes += 1
            self.send_response(200)
            self.end_headers()

        def do_DELETE(self) -> None:
            held.groups.pop(self.path, None)
            self.send_response(202)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    held.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield held
    server.shutdown()
    server.server_close()
    thread.join()


def telemetry(folder: Path, url: str, rank: int = 0) -> Telemetry:
    config = TelemetryConfig(pushgateway=url, push_every=1.0)
    return Telemetry(config, folder, rank=rank, title="demo", num_iterations=10, stream=io.StringIO())


def test_every_rank_is_a_group_that_goes_with_it(gateway: Gateway, tmp_path: Path) -> None:
    ranks = [telemetry(tmp_path / "run-5", gateway.url, rank) for rank in (0, 1)]
    ranks[0].start(7)
    end = time.monotonic() + 30
    while len(gateway.groups) < 2:
        assert time.monotonic() < end
        time.sleep(0.02)
    first, second = (gateway.groups[f"/metrics/job/earlybird/rank/{rank}/run/run-5"] for rank in (0, 1))
    assert 'earlybird_iteration{rank="0",run="run-5"} 7.0' in first
    assert 'earlybird_host_memory_bytes{rank="1",run="run-5"}' in second
    assert "earlybird_iteration{" not in second
    for rank in ranks:
        rank.close(status="completed")
    assert gateway.groups == {}
    pushes = gateway.num_pushes
    time.sleep(1.2)
    assert gateway.num_pushes == pushes


@pytest.mark.parametrize("url", ["host:9091", "http://", "http://host:abc", "http://host:99999", "http://a..b:9091"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"telemetry\.pushgateway is .*; give a URL"):
        TelemetryConfig(pushgateway=url)


def test_a_gateway_that_speaks_no_http_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It answers, with something else: http.client's errors are no OSErrors."""

    class Other(StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(b"220 another protocol\r\n")

    with ThreadingTCPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,)).start()
        try:
            run = telemetry(tmp_path / "run", f"http://127.0.0.1:{server.server_address[1]}")
            end = time.monotonic() + 30
            while "metrics could not be pushed" not in caplog.text:
                assert time.monotonic() < end
                time.sleep(0.02)
            run.close(status="completed")
        finally:
            server.shutdown()
    assert "could not be deleted (220 another protocol" in caplog.text


def test_a_gateway_that_is_gone_costs_a_warning(
    tmp_path: Path, free_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    run = telemetry(tmp_path / "run", f"http://127.0.0.1:{free_port}")
    end = time.monotonic() + 30
    while "metrics could not be pushed" not in caplog.text:
        assert time.monotonic() < end
        time.sleep(0.02)
    run.close(status="completed")
    assert "the group of rank 0 could not be deleted" in caplog.text
    assert (tmp_path / "run" / "log.jsonl").read_text().count('"event": "end"') == 1
