"""One row in, every reader served: the log file, the console, the metrics endpoint."""

from __future__ import annotations

import logging
import os
import socket
import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import psutil
import torch

from dataloading.header import REASONS
from trainer.evaluation.anytime import AnytimeRow
from trainer.telemetry.console import Pace, RunConsole
from trainer.telemetry.goodput import Goodput
from trainer.telemetry.jsonl import JsonLog, Row, read_rows
from trainer.telemetry.machine import follow_machine
from trainer.telemetry.metrics import Metrics
from trainer.telemetry.prometheus import Exporter, RunRegistry, TelemetryConfig
from trainer.telemetry.pushgateway import Pusher
from trainer.telemetry.targets import AddressFile, TargetFile, reached_at
from trainer.telemetry.window import QUANTILES, Own

logger = logging.getLogger(__name__)

REMEMBERED = 101  # iterations that the median time is taken over
SKIPPED = ("non_finite", "fp16_overflow")  # reasons of updates that were left out


_CPU = torch.device("cpu")


class Telemetry:
    """Takes plain numbers (whoever calls has waited for the device already) and never touches the device.

    Rank 0 writes `log.jsonl` and the console; every rank feeds its own metrics endpoint where `config.port` is set, and
    pushes where `config.pushgateway` is.

    target  host:port of this rank's endpoint, None without one

    Raises ValueError where the endpoint cannot listen, OSError where the log cannot be opened.
    """

    def __init__(
        self,
        config: TelemetryConfig,
        run_folder: Path,
        *,
        rank: int = 0,
        local_rank: int = 0,
        title: str = "",
        num_iterations: int = 0,
        num_epochs: int = 0,
        device: torch.device = _CPU,
        stream: TextIO | None = None,
    ) -> None:
        """title  the recipe's name; num_iterations, num_epochs  of the whole run; stream  of the console (stderr)"""
        self.metrics = Metrics(rank)
        self.run = config.run or run_folder.resolve().name
        self.target: str | None = None
        self._exporter: Exporter | None = None
        self._pusher: Pusher | None = None
        self._address: AddressFile | None = None
        self._targets = (
            TargetFile(Path(config.targets), self.run, config.scheme) if config.targets and rank == 0 else None
        )
        self._log: JsonLog | None = None
        self._console: RunConsole | None = None
        self._goodput = Goodput()
        self._num_iterations, self._num_epochs = num_iterations, num_epochs
        if rank == 0:
            path = run_folder / "log.jsonl"
            self._goodput = Goodput(read_rows(path))
            self._log = JsonLog(path)
            self._console = RunConsole(title, num_iterations, num_epochs, stream)
        self._pace = Pace()
        self._steps: deque[float] = deque(maxlen=REMEMBERED)
        self._checkpointed = self._last_step = time.time()
        self._begin(title, device, run_folder)
        registry = RunRegistry(self.metrics, self.run, rank)
        if config.port:
            self._exporter = Exporter(registry, config.port + local_rank, config)
            self.target = reached_at(config.address, self._exporter.port, config.host)
            self._address = AddressFile(run_folder, rank, f"{config.scheme}://{self.target}/metrics")
            logger.info("metrics: %s://%s/metrics", config.scheme, self.target)
        if config.pushgateway:
            self._pusher = Pusher(registry, config.pushgateway, config.push_every, run=self.run, rank=rank)

    def _begin(self, title: str, device: torch.device, run_folder: Path) -> None:
        """What has a value before the first iteration: a counter that begins at 0 shows its first event as a rise."""
        metrics = self.metrics
        metrics.compute("checkpoint_age_seconds", lambda: time.time() - self._checkpointed)
        metrics.compute("last_step_timestamp_seconds", lambda: self._last_step)
        metrics.set("start_timestamp_seconds", psutil.Process().create_time())
        metrics.set("iterations_planned", self._num_iterations)
        metrics.set("build_info", 1, version=_version(), torch=torch.__version__, recipe=title, device=device.type)
        for reason in REASONS:
            metrics.add("bad_samples_total", 0, reason=reason)
        for reason in SKIPPED:
            metrics.add("skipped_steps_total", 0, reason=reason)
        for name in ("images_total", "iterations_total", "rollbacks_total", "checkpoint_failures_total"):
            metrics.add(name, 0)
        follow_machine(metrics, run_folder, device)

    def describe(self, targets: Sequence[tuple[int, str]], mul_adds: Sequence[float], phases: Sequence[str]) -> None:
        """What stays as it is while this process lives.

        targets  (rank, host:port) of every rank's endpoint; mul_adds  of an image by the exit it leaves at
        phases   that a stall may fall into
        """
        self.metrics.set("ranks", len(targets))
        for k, operations in enumerate(mul_adds, start=1):
            self.metrics.set("exit_mul_adds", operations, exit=k)
            if k > 1:
                self.metrics.set("exit_info", 1, exit=k, previous=k - 1)
        for phase in phases:
            self.metrics.add("stalls_total", 0, cause=phase)
        if self._targets:
            self._targets.write(targets)

    def start(
        self, iteration: int, *, left_out: Mapping[str, int] | None = None, again: bool = False, **fields: Any
    ) -> None:
        """The run begins, or goes on after `iteration` iterations: later rows of the log no longer count.

        again  this process goes back to an earlier iteration: it does not start up anew
        left_out  images that are no part of the data since they cannot be read: their number by reason
        """
        began = time.time() if again else psutil.Process().create_time()
        here = {"host": socket.gethostname(), "pid": os.getpid(), "process_began": began}
        row = self._write("start", iteration=iteration, again=again, **here, left_out=dict(left_out or {}), **fields)
        for reason, count in (left_out or {}).items():
            self.metrics.add("bad_samples_total", count, reason=reason)
        self.metrics.set("iteration", iteration)
        if self._console and row:
            self._console.start(row)

    def beat(self) -> None:
        """An iteration, or a batch of an evaluation, is done: nothing hangs."""
        self._last_step = time.time()

    def train(self, row: Mapping[str, Any], own: Own | None = None) -> None:
        """A log step.

        row  Reading.row() (loss, top1 [K], meta_loss, weight_quantiles [K][3], images, num_iterations, seconds,
             data_wait_seconds, meta_step_seconds, num_meta_steps, images_per_second), and iteration (done so far),
             epoch (with its fraction), learning_rate; weight_net_learning_rate and checkpoint_interval_seconds, which
             may be missing
        own  what this rank did of it; None where it is the only one and its iterations were not timed one by one
        """
        metrics, number = self.metrics, row["num_iterations"]
        own = own or Own(row["images"], [row["seconds"] / number] * number if number else [], 0.0)
        self.beat()
        metrics.add("images_total", own.images)
        metrics.add("iterations_total", number)
        metrics.add("data_wait_seconds_total", row["data_wait_seconds"])
        metrics.add("collective_seconds_total", own.collective_seconds)
        for name in ("iteration", "epoch", "learning_rate", "images_per_second", "meta_loss"):
            metrics.set(name, row[name])
        for name in ("weight_net_learning_rate", "checkpoint_interval_seconds"):
            metrics.set(name, row.get(name))
        for seconds in own.step_seconds:
            metrics.observe("step_seconds", seconds)
        self._steps.extend(own.step_seconds)
        metrics.set("step_median_seconds", statistics.median(self._steps) if self._steps else None)
        meta_steps = row["num_meta_steps"]
        if row["meta_step_seconds"] is not None:
            metrics.observe("meta_step_seconds", row["meta_step_seconds"] / max(1, meta_steps), meta_steps)
        self._pace.add(row["seconds"], number)
        metrics.set("eta_seconds", self._pace.seconds(self._num_iterations - row["iteration"]))
        for k, (loss, share) in enumerate(zip(row["loss"], row["top1"], strict=True), start=1):
            metrics.set("exit_loss", loss, exit=k, split="train")
            metrics.set("exit_accuracy_ratio", share, exit=k, split="train")
        for k, quantiles in enumerate(row["weight_quantiles"] or (), start=1):
            for quantile, weight in zip(QUANTILES, quantiles, strict=True):
                metrics.set("sample_weight", weight, exit=k, quantile=quantile)
        for part in ("easy", "hard"):
            for k, weight in enumerate(row[f"weight_{part}"] or (), start=1):
                metrics.set(f"sample_weight_{part}", weight, exit=k)
        written = self._write("train", **row)
        if self._console and written:
            self._console.train(row)

    def evaluation(
        self,
        rows: Sequence[AnytimeRow],
        *,
        split: str,
        iteration: int,
        seconds: float,
        unreadable: Mapping[str, int] | None = None,
    ) -> None:
        """Every exit's scores on a split, how long they took, and how many of its images were unreadable by reason."""
        for row in rows:
            self.metrics.set("exit_accuracy_ratio", row["top1"] / 100, exit=row["exit"], split=split)
            self.metrics.set("exit_loss", row["loss"], exit=row["exit"], split=split)
        written = self._write(
            "eval",
            iteration=iteration,
            split=split,
            seconds=seconds,
            unreadable=dict(unreadable or {}),
            exits=list(rows),
        )
        if self._console and written:
            self._console.evaluation({"iteration": iteration, "split": split, "exits": rows})

    def epoch_ended(self) -> None:
        self.metrics.set("epoch_timestamp_seconds", time.time())

    def checkpoint(self, iteration: int, *, seconds: float, folder: Path, **fields: Any) -> None:
        """A checkpoint is safe on disk; training waited `seconds` for it; `write_seconds` the writer took."""
        self._checkpointed = time.time()
        self.metrics.set("checkpoint_timestamp_seconds", self._checkpointed)
        self.metrics.set("checkpoint_write_seconds", fields.get("write_seconds"))
        self._write("checkpoint", iteration=iteration, seconds=seconds, folder=folder.name, **fields)

    def bad_image(self, reason: str, **fields: Any) -> None:
        """A training image could not be read and another took its place; reason  one of a fixed few words."""
        self.metrics.add("bad_samples_total", 1, reason=reason)
        self._write("bad_image", reason=reason, **fields)

    def skipped_step(self, reason: str, number: int = 1, **fields: Any) -> None:
        """`number` backbone updates were left out."""
        self.metrics.add("skipped_steps_total", number, reason=reason)
        self._write("skipped_step", reason=reason, number=number, **fields)

    def checkpoint_failed(self, iteration: int, reason: str) -> None:
        """A checkpoint could not be written; training goes on."""
        self.metrics.add("checkpoint_failures_total", 1)
        self.event("checkpoint failed", iteration=iteration, reason=reason)

    def rolled_back(self, **fields: Any) -> None:
        """The run went back to its newest checkpoint."""
        self.metrics.add("rollbacks_total", 1)
        self.event("rolled back", **fields)

    def stalled(self, phase: str, seconds: float, **fields: Any) -> None:
        """No iteration ended for so long, and now one did."""
        self.metrics.add("stalls_total", 1, cause=phase)
        self.event("stalled", phase=phase, seconds=round(seconds, 1), **fields)

    def event(self, name: str, **fields: Any) -> None:
        """Anything else worth a row of the log and a line on the console."""
        self._write(name, **fields)
        if self._console:
            self._console.line("  ".join([name, *(f"{key} {value}" for key, value in fields.items())]))

    def close(self, **fields: Any) -> None:
        """Write the end row with `fields` (status, iteration), free the terminal, the file and the port.

        A run that failed or diverged, or ends without a `status`, did not mean to: it stays among the targets, as one
        that does not answer.
        """
        if self._log is not None:
            self._write("end", goodput_ratio=self._goodput.ratio, badput_seconds=dict(self._goodput.badput), **fields)
            self._log.close()
            self._log = None
        if self._console:
            self._console.close()
            self._console = None
        if self._targets and fields.get("status") in ("completed", "stopped", "preempted"):
            self._targets.remove()
        for part in (self._exporter, self._pusher):
            if part:
                part.close()
        if self._address:
            self._address.remove()
        self._exporter, self._pusher, self._address, self._targets = None, None, None, None

    def _write(self, event: str, **fields: Any) -> Row | None:
        """Into the log and the goodput account; None on the ranks that keep neither."""
        if self._log is None:
            return None
        row = self._log.write(event, **fields)
        self._goodput.follow(row)
        goodput = self._goodput
        self.metrics.set("goodput_ratio", goodput.ratio)
        self.metrics.set("accounted_seconds_total", goodput.productive_seconds + sum(goodput.badput.values()))
        for cause, seconds in goodput.badput.items():
            self.metrics.set("badput_seconds_total", seconds, cause=cause)
        return row


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("earlybird")
    except PackageNotFoundError:
        return "uninstalled"
