"""One row in, every reader served: the log file, the console, the metrics endpoint."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import psutil
import torch

from trainer.evaluation.anytime import AnytimeRow
from trainer.telemetry.console import RunConsole
from trainer.telemetry.goodput import Goodput
from trainer.telemetry.jsonl import JsonLog, Row, read_rows
from trainer.telemetry.metrics import Metrics
from trainer.telemetry.prometheus import Exporter, TelemetryConfig
from trainer.telemetry.window import QUANTILES

logger = logging.getLogger(__name__)


class Telemetry:
    """Takes plain numbers (whoever calls has waited for the device already) and never touches the device.

    Rank 0 writes `log.jsonl` and the console; every rank feeds its own metrics endpoint where `config.port` is set.
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
        device: str = "cpu",
        stream: TextIO | None = None,
    ) -> None:
        """title  the recipe's name; num_iterations, num_epochs  of the whole run; stream  of the console (stderr)"""
        self.metrics = Metrics(rank)
        self._exporter = Exporter(self.metrics, config.port + local_rank, config.address) if config.port else None
        if self._exporter:
            logger.info("metrics: http://%s:%d/metrics", config.address, self._exporter.port)
        self._log: JsonLog | None = None
        self._console: RunConsole | None = None
        self._goodput = Goodput()
        self._num_iterations, self._num_epochs = num_iterations, num_epochs
        if rank == 0:
            path = run_folder / "log.jsonl"
            self._goodput = Goodput(read_rows(path))
            self._log = JsonLog(path)
            self._console = RunConsole(title, num_iterations, num_epochs, stream)
        self._checkpointed = time.time()
        self.metrics.compute("checkpoint_age_seconds", lambda: time.time() - self._checkpointed)
        self.metrics.set("iterations_planned", num_iterations)
        self.metrics.set("build_info", 1, version=_version(), torch=torch.__version__, recipe=title, device=device)

    def start(
        self, iteration: int, *, left_out: Mapping[str, int] | None = None, again: bool = False, **fields: Any
    ) -> None:
        """The run begins, or goes on after `iteration` iterations: later rows of the log no longer count.

        again  this process goes back to an earlier iteration: it does not start up anew
        left_out  images that are no part of the data since they cannot be read: their number by reason
        """
        began = time.time() if again else psutil.Process().create_time()
        row = self._write("start", iteration=iteration, process_began=began, left_out=dict(left_out or {}), **fields)
        for reason, count in (left_out or {}).items():
            self.metrics.add("bad_samples_total", count, reason=reason)
        self.metrics.set("iteration", iteration)
        if self._console and row:
            self._console.start(row)

    def train(self, row: Mapping[str, Any]) -> None:
        """A log step.

        row  Reading.row() (loss, top1 [K], meta_loss, weight_quantiles [K][3], images, num_iterations, seconds,
             data_wait_seconds, meta_step_seconds, num_meta_steps, images_per_second), and iteration (done so far),
             epoch (with its fraction), learning_rate
        """
        metrics = self.metrics
        metrics.add("images_total", row["images"])
        metrics.add("iterations_total", row["num_iterations"])
        metrics.add("data_wait_seconds_total", row["data_wait_seconds"])
        metrics.set("last_step_timestamp_seconds", time.time())
        for name in ("iteration", "epoch", "learning_rate", "images_per_second", "meta_loss"):
            metrics.set(name, row[name])
        for part, seconds, times in (
            ("step_seconds", row["seconds"], row["num_iterations"]),
            ("meta_step_seconds", row["meta_step_seconds"], row["num_meta_steps"]),
        ):
            metrics.observe(part, seconds / max(1, times), times)
        for k, (loss, share) in enumerate(zip(row["loss"], row["top1"], strict=True), start=1):
            metrics.set("exit_loss", loss, exit=k)
            metrics.set("exit_accuracy_ratio", share, exit=k, split="train")
        for k, quantiles in enumerate(row["weight_quantiles"] or (), start=1):
            for quantile, weight in zip(QUANTILES, quantiles, strict=True):
                metrics.set("sample_weight", weight, exit=k, quantile=quantile)
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

    def checkpoint(self, iteration: int, *, seconds: float, folder: Path, **fields: Any) -> None:
        """A checkpoint is safe on disk; training waited `seconds` for it."""
        self._checkpointed = time.time()
        self.metrics.set("checkpoint_timestamp_seconds", self._checkpointed)
        self._write("checkpoint", iteration=iteration, seconds=seconds, folder=folder.name, **fields)

    def bad_image(self, reason: str, **fields: Any) -> None:
        """A training image could not be read and another took its place; reason  one of a fixed few words."""
        self.metrics.add("bad_samples_total", 1, reason=reason)
        self._write("bad_image", reason=reason, **fields)

    def skipped_step(self, reason: str, number: int = 1, **fields: Any) -> None:
        """`number` backbone updates were left out."""
        self.metrics.add("skipped_steps_total", number, reason=reason)
        self._write("skipped_step", reason=reason, number=number, **fields)

    def event(self, name: str, **fields: Any) -> None:
        """Anything else worth a row of the log and a line on the console."""
        self._write(name, **fields)
        if self._console:
            self._console.line("  ".join([name, *(f"{key} {value}" for key, value in fields.items())]))

    def close(self, **fields: Any) -> None:
        """Write the end row with `fields` (status, iteration), free the terminal, the file and the port."""
        if self._log is not None:
            self._write("end", goodput_ratio=self._goodput.ratio, badput_seconds=dict(self._goodput.badput), **fields)
            self._log.close()
            self._log = None
        if self._console:
            self._console.close()
            self._console = None
        if self._exporter:
            self._exporter.close()
            self._exporter = None

    def _write(self, event: str, **fields: Any) -> Row | None:
        """Into the log and the goodput account; None on the ranks that keep neither."""
        if self._log is None:
            return None
        row = self._log.write(event, **fields)
        self._goodput.follow(row)
        self.metrics.set("goodput_ratio", self._goodput.ratio)
        for cause, seconds in self._goodput.badput.items():
            self.metrics.set("badput_seconds_total", seconds, cause=cause)
        return row


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("earlybird")
    except PackageNotFoundError:
        return "uninstalled"
