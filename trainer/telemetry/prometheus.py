"""The HTTP endpoint that Prometheus scrapes, group `telemetry`."""

from __future__ import annotations

import errno
import os
import ssl
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, make_wsgi_app, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from trainer.telemetry.answers import Answers
from trainer.telemetry.metrics import METRICS, STEP_BUCKETS, Histogram, Metrics

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


@dataclass(frozen=True)
class TelemetryConfig:
    """Group `telemetry`.

    port         of the metrics endpoint, one per process: port + local rank, the next free one if it is taken; 0 for
                 none. Its address is written to metrics/rank-R.json in the run folder
    address      it listens on; 0.0.0.0 for scrapers on other machines (the endpoint has no password)
    host         name under which scrapers reach this machine; "" for its own name, or the address listened on
    run          what the run is called in its metrics; "" for the run folder's name
    targets      folder of Prometheus' file_sd targets: RUN.json there names every rank's address while the run lasts,
                 and stays behind where it is killed; "" for none
    pushgateway  URL to push to, for jobs that end before they are scraped; the group is deleted at the end; "" for none
    push_every   seconds between two pushes
    tls_certificate, tls_key  PEM files with which the endpoint speaks HTTPS; "" for plain HTTP
    tls_client_ca  PEM file of the authority whose certificate every scraper must show; "" asks for none
    """

    port: int = 0
    address: str = "127.0.0.1"
    host: str = ""
    run: str = ""
    targets: str = ""
    pushgateway: str = ""
    push_every: float = 10.0
    tls_certificate: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise ValueError(f"telemetry.port is {self.port}; it must lie in 1 to 65535, or be 0 for no endpoint")
        if "/" in self.run or self.run.startswith("."):
            raise ValueError(f"telemetry.run is {self.run!r}; it names a file: leave out slashes and a leading dot")
        if self.targets and not self.port:
            raise ValueError("telemetry.targets is set, but no endpoint is: choose one with --set telemetry.port=9400")
        if self.pushgateway and not _is_url(self.pushgateway):
            raise ValueError(f"telemetry.pushgateway is {self.pushgateway!r}; give a URL, as in http://host:9091")
        if not self.push_every >= 1:
            raise ValueError(f"telemetry.push_every is {self.push_every}; it must be at least 1 second")
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("one of telemetry.tls_certificate and telemetry.tls_key is set; set both, or neither")
        if self.tls_client_ca and not self.tls_certificate:
            raise ValueError(
                "telemetry.tls_client_ca is set, but the endpoint speaks plain HTTP; set telemetry.tls_certificate and "
                "telemetry.tls_key too"
            )

    @property
    def scheme(self) -> str:
        """http, or https where a certificate is set."""
        return "https" if self.tls_certificate else "http"

    @property
    def exports(self) -> bool:
        """Whether anybody outside sees the metrics."""
        return bool(self.port or self.pushgateway)


PORTS_TRIED = 64
PATIENCE = 30.0  # seconds that a scraper may say nothing


class RunRegistry(CollectorRegistry):
    """The run's metrics and nothing of the Python process beside them; `run` and `rank` label every series."""

    def __init__(self, metrics: Metrics, run: str, rank: int) -> None:
        super().__init__()
        self.metrics = metrics
        self.register(_Table(metrics, {"run": run, "rank": str(rank)}))


class Exporter:
    """A thread that answers scrapes from a copy of the metrics, so the training step never waits for a scraper.

    Listens on `port` or, where that is taken, on the next free one. Raises ValueError where it cannot listen, or a file
    of its certificates does not serve.
    """

    def __init__(self, registry: RunRegistry, port: int, config: TelemetryConfig) -> None:
        address, tls = config.address, _tls(config)
        last = min(port + PORTS_TRIED, 65_536)
        for candidate in range(port, max(last, port + 1)):
            try:
                self._server, self._thread = start_http_server(candidate, address, registry, **tls)
                break
            except (OSError, OverflowError) as error:
                if getattr(error, "errno", None) == errno.EADDRINUSE and candidate + 1 < last:
                    continue
                raise ValueError(
                    f"the metrics endpoint cannot listen on {address}:{candidate} ({error}); choose a free port with "
                    f"--set telemetry.port=PORT (each process of a machine takes PORT + its local rank), or 0 for none"
                ) from error
        self.port = int(self._server.server_address[1])
        self._server.set_app(Answers(make_wsgi_app(registry), lambda: registry.metrics.version))
        # A client that connects and says nothing must not keep the others waiting, nor the run from its end: TLS is
        # agreed on in the client's own thread (the server's own would wait for it), and silence ends that one.
        usual: Any = self._server.RequestHandlerClass
        self._server.RequestHandlerClass = type("_Client", (_Client, usual), {"timeout": PATIENCE})
        if tls:
            self._server.socket.do_handshake_on_connect = False  # type: ignore[attr-defined]

    def close(self) -> None:
        """Stop answering and give the port back."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Client(BaseHTTPRequestHandler):
    """Answers one connection; one that breaks off, stays silent or has no certificate is no error of the run's."""

    def handle(self) -> None:
        with suppress(OSError):
            super().handle()


def _is_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        # A port that is no number, a label of the name that is empty or too long: both are ValueErrors.
        return parts.scheme in ("http", "https") and bool((parts.hostname or "").encode("idna")) and parts.port != 0
    except ValueError:
        return False


def _tls(config: TelemetryConfig) -> dict[str, Any]:
    for name in ("tls_certificate", "tls_key", "tls_client_ca"):
        path = getattr(config, name)
        if path and not os.access(path, os.R_OK):
            raise ValueError(f"telemetry.{name} is {path}, which cannot be read; give a PEM file")
    if not config.tls_certificate:
        return {}
    try:  # before a port is bound, which would stay so
        trial = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        trial.load_cert_chain(config.tls_certificate, config.tls_key)
        if config.tls_client_ca:
            trial.load_verify_locations(config.tls_client_ca)
    except ssl.SSLError as error:
        raise ValueError(
            f"telemetry.tls_certificate {config.tls_certificate}, tls_key or tls_client_ca does not serve ({error}); "
            "give PEM files, the key being the certificate's own"
        ) from error
    asked = {"client_cafile": config.tls_client_ca, "client_auth_required": True} if config.tls_client_ca else {}
    return {"certfile": config.tls_certificate, "keyfile": config.tls_key, **asked}


class _Table(Collector):
    def __init__(self, metrics: Metrics, labels: dict[str, str]) -> None:
        self._metrics, self._labels = metrics, labels

    def collect(self) -> Iterator[Family]:
        for name, values in self._metrics.read().items():
            metric = METRICS[name]
            if isinstance(values, Histogram):
                yield _histogram(metric.name, metric.help, values, self._labels)
                continue
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=(*self._labels, *metric.labels))
            for labels, value in values.items():
                family.add_metric((*self._labels.values(), *labels), value)
            yield family

    def describe(self) -> list[Family]:
        """Nothing to reserve: the registry is this table's alone."""
        return []


def _histogram(name: str, text: str, histogram: Histogram, labels: dict[str, str]) -> HistogramMetricFamily:
    buckets, total = [], 0
    for edge, count in zip((*map(str, STEP_BUCKETS), "+Inf"), histogram.counts, strict=True):
        total += count
        buckets.append((edge, float(total)))
    family = HistogramMetricFamily(name, text, labels=tuple(labels))
    family.add_metric(tuple(labels.values()), buckets, sum_value=histogram.sum)
    return family
