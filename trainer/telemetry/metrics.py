"""Every metric a run exports: one table, and the values of this process.

The exporter adds the labels `run` and `rank` to all. Every other label takes few values, known beforehand: exit (as
many as the net has), split (train, val, heldout), cause and reason (words from a fixed list), quantile (three).
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

STEP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
MOST_LABEL_SETS = 200  # per metric: more is a label whose values grow, which no time-series database forgives


Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True)
class Metric:
    """One row of the table.

    name       as it is scraped, with its unit and, for counters, _total
    every_rank  exported by every rank; the others are of the whole run and exported by rank 0 alone
    """

    name: str
    kind: Kind
    unit: str
    help: str
    labels: tuple[str, ...] = ()
    every_rank: bool = False


def _run(name: str, kind: Kind, unit: str, text: str, *labels: str) -> Metric:
    return Metric(f"earlybird_{name}", kind, unit, text, labels)


def _rank(name: str, kind: Kind, unit: str, text: str, *labels: str) -> Metric:
    return Metric(f"earlybird_{name}", kind, unit, text, labels, every_rank=True)


_TABLE = (
    # How far and how fast
    _rank("images_total", "counter", "images", "Training images that this rank trained on"),
    _run("images_per_second", "gauge", "images/s", "Training images per second of the last log window, over all ranks"),
    _run("iterations_total", "counter", "iterations", "Iterations done; each is two updates of the backbone"),
    _run("iteration", "gauge", "iterations", "Iterations of the run done so far, resumed ones included"),
    _run("iterations_planned", "gauge", "iterations", "Iterations of the whole run"),
    _run("epoch", "gauge", "epochs", "Passes over the training images done so far, with its fraction"),
    _run("epoch_timestamp_seconds", "gauge", "s", "Unix time at which the last whole epoch ended"),
    _run("eta_seconds", "gauge", "s", "Time left at the present pace, evaluations not counted"),
    _run("ranks", "gauge", "processes", "Processes that train together"),
    # Where the time goes
    _rank("step_seconds", "histogram", "s", "Time of an iteration, the wait for its batch included"),
    _rank("step_median_seconds", "gauge", "s", "Median time of the last 101 iterations"),
    _rank("meta_step_seconds", "histogram", "s", "Time of one meta update, mean of its log window"),
    _rank("data_wait_seconds_total", "counter", "s", "Time spent waiting for the loader"),
    _rank("collective_seconds_total", "counter", "s", "Time in collectives, which wait for the slowest rank"),
    _rank("last_step_timestamp_seconds", "gauge", "s", "Unix time of the last iteration or batch of an evaluation"),
    _rank("start_timestamp_seconds", "gauge", "s", "Unix time at which this process started"),
    _run("goodput_ratio", "gauge", "1", "Share of the run's wall time that trained what is still part of the net"),
    _run("badput_seconds_total", "counter", "s", "Wall time that did not train, by cause", "cause"),
    _run("accounted_seconds_total", "counter", "s", "Wall time of the run that goodput and badput account for"),
    # What is learned
    _run("exit_loss", "gauge", "nats", "Loss: of the last log window, or of the last evaluation", "exit", "split"),
    _run("exit_accuracy_ratio", "gauge", "1", "Top-1 accuracy, 0 to 1", "exit", "split"),
    _run("exit_info", "gauge", "1", "1, with the number of the exit before this one", "exit", "previous"),
    _run("exit_mul_adds", "gauge", "operations", "Multiply-adds of an image that leaves at this exit", "exit"),
    _run("sample_weight", "gauge", "1", "Quantiles of the last half batch's sample weights", "exit", "quantile"),
    _run("sample_weight_easy", "gauge", "1", "Mean weight of the half of the samples with the lower loss", "exit"),
    _run("sample_weight_hard", "gauge", "1", "Mean weight of the half of the samples with the higher loss", "exit"),
    _run("meta_loss", "gauge", "nats", "Loss that the weight net was last updated on"),
    _run("learning_rate", "gauge", "1", "Learning rate of the backbone"),
    _run("weight_net_learning_rate", "gauge", "1", "Learning rate of the weight net"),
    # What goes wrong
    _run("bad_samples_total", "counter", "images", "Images that could not be read: left out or replaced", "reason"),
    _run("skipped_steps_total", "counter", "updates", "Backbone updates left out", "reason"),
    _run("rollbacks_total", "counter", "times", "Times that the run went back to its newest checkpoint"),
    _rank("stalls_total", "counter", "times", "Times that no iteration ended for long, by what hung", "cause"),
    _run("checkpoint_timestamp_seconds", "gauge", "s", "Unix time of the newest checkpoint"),
    _run("checkpoint_age_seconds", "gauge", "s", "Time since the newest checkpoint, without one since the start"),
    _run("checkpoint_interval_seconds", "gauge", "s", "Time between checkpoints at the present pace"),
    _run("checkpoint_write_seconds", "gauge", "s", "Time that writing the newest checkpoint took"),
    _run("checkpoint_failures_total", "counter", "times", "Checkpoints that could not be written"),
    _run("disk_free_bytes", "gauge", "bytes", "Free space where the run folder lies"),
    _run("disk_size_bytes", "gauge", "bytes", "Size of the file system where the run folder lies"),
    # What it runs on
    _rank("host_memory_bytes", "gauge", "bytes", "Memory of this process that is resident"),
    _rank("gpu_memory_used_bytes", "gauge", "bytes", "Memory in use on this rank's GPU, by whomever"),
    _rank("gpu_memory_size_bytes", "gauge", "bytes", "Memory of this rank's GPU"),
    _rank("gpu_memory_reserved_bytes", "gauge", "bytes", "GPU memory that this process's allocator holds"),
    _rank("gpu_utilization_ratio", "gauge", "1", "Share of the last moment in which this rank's GPU ran a kernel"),
    _rank("gpu_allocation_retries_total", "counter", "times", "Allocations that had to free cached GPU memory first"),
    _rank("build_info", "gauge", "1", "1, with what this process runs", "version", "torch", "recipe", "device"),
)
METRICS = {metric.name.removeprefix("earlybird_"): metric for metric in _TABLE}


@dataclass
class Histogram:
    """Counts per bucket of STEP_BUCKETS and above, not cumulated, and the sum of what was observed."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(STEP_BUCKETS) + 1))
    sum: float = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self.counts[bisect_left(STEP_BUCKETS, value)] += times
        self.sum += value * times


LabelValues = tuple[str, ...]


class Metrics:
    """Values of the table's metrics, safe to read from another thread.

    A name is the table's without its prefix; an unknown one is a KeyError. Metrics of the whole run are dropped where
    this is not rank 0.
    """

    def __init__(self, rank: int = 0) -> None:
        self._rank = rank
        self._lock = threading.Lock()
        self._values: dict[str, dict[LabelValues, float]] = {}
        self._histograms: dict[str, Histogram] = {}
        self._computed: dict[str, Callable[[], float]] = {}
        self.version = 0  # counts changes

    def set(self, name: str, value: float | None, **labels: object) -> None:
        """Set a gauge (or a counter that is kept elsewhere); None leaves it as it is."""
        if value is not None and self._exported(name):
            with self._lock:
                self._series(name)[self._label_values(name, labels)] = float(value)
                self.version += 1

    def add(self, name: str, amount: float, **labels: object) -> None:
        """Count up."""
        assert METRICS[name].kind == "counter"
        if self._exported(name):
            with self._lock:
                series, key = self._series(name), self._label_values(name, labels)
                series[key] = series.get(key, 0.0) + amount
                self.version += 1

    def observe(self, name: str, value: float, times: int = 1) -> None:
        """`times` observations of `value` in a histogram."""
        assert METRICS[name].kind == "histogram"
        if self._exported(name) and times > 0:
            with self._lock:
                self._histograms.setdefault(name, Histogram()).observe(value, times)
                self.version += 1

    def compute(self, name: str, value: Callable[[], float]) -> None:
        """A metric without labels that is computed whenever it is read; it must not raise."""
        if self._exported(name):
            self._computed[name] = value
            self.version += 1

    def read(self) -> dict[str, dict[LabelValues, float] | Histogram]:
        """A copy of all that has a value, in the table's order."""
        with self._lock:
            values = {name: dict(series) for name, series in self._values.items()}
            histograms = {name: Histogram(list(h.counts), h.sum) for name, h in self._histograms.items()}
        values |= {name: {(): compute()} for name, compute in self._computed.items()}
        found: dict[str, dict[LabelValues, float] | Histogram] = {**values, **histograms}
        return {name: found[name] for name in METRICS if name in found}

    def _exported(self, name: str) -> bool:
        return METRICS[name].every_rank or self._rank == 0

    def _series(self, name: str) -> dict[LabelValues, float]:
        return self._values.setdefault(name, {})

    def _label_values(self, name: str, labels: dict[str, object]) -> LabelValues:
        metric = METRICS[name]
        assert set(labels) == set(metric.labels), f"{metric.name} takes the labels {metric.labels}, not {tuple(labels)}"
        values = tuple(str(labels[label]) for label in metric.labels)
        series = self._series(name)
        if values not in series and len(series) >= MOST_LABEL_SETS:
            return tuple("other" for _ in values)
        return values
