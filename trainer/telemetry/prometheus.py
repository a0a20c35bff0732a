"""The HTTP endpoint that Prometheus scrapes, group `telemetry`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from trainer.telemetry.metrics import METRICS, STEP_BUCKETS, Histogram, Metrics

Family = CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily


@dataclass(frozen=True)
class TelemetryConfig:
    """Group `telemetry`.

    port     of the metrics endpoint, one per process: port + local rank; 0 for none
    address  it listens on; 0.0.0.0 for scrapers on other machines (the endpoint has no password)
    """

    port: int = 0
    address: str = "127.0.0.1"

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise ValueError(f"telemetry.port is {self.port}; it must lie in 1 to 65535, or be 0 for no endpoint")


class Exporter:
    """A thread that answers scrapes from a copy of the metrics, so the training step never waits for a scraper.

    Its registry is its own: nothing global, nothing of the Python process beside the run's metrics.
    Raises ValueError where it cannot listen.
    """

    def __init__(self, metrics: Metrics, port: int, address: str = "127.0.0.1") -> None:
        registry = CollectorRegistry()
        registry.register(_Table(metrics))
        try:
            self._server, self._thread = start_http_server(port, address, registry)
        except (OSError, OverflowError) as error:
            raise ValueError(
                f"the metrics endpoint cannot listen on {address}:{port} ({error}); choose a free port with "
                f"--set telemetry.port=PORT (each process of a machine takes PORT + its local rank), or 0 for none"
            ) from error
        self.port = int(self._server.server_address[1])

    def close(self) -> None:
        """Stop answering and give the port back."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Table(Collector):
    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Family]:
        for name, values in self._metrics.read().items():
            metric = METRICS[name]
            if isinstance(values, Histogram):
                yield _histogram(metric.name, metric.help, values)
                continue
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            family = kind(metric.name, metric.help, labels=metric.labels)
            for labels, value in values.items():
                family.add_metric(labels, value)
            yield family

    def describe(self) -> list[Family]:
        """Nothing to reserve: the registry is this table's alone."""
        return []


def _histogram(name: str, text: str, histogram: Histogram) -> HistogramMetricFamily:
    buckets, total = [], 0
    for edge, count in zip((*map(str, STEP_BUCKETS), "+Inf"), histogram.counts, strict=True):
        total += count
        buckets.append((edge, float(total)))
    family = HistogramMetricFamily(name, text)
    family.add_metric([], buckets, sum_value=histogram.sum)
    return family
