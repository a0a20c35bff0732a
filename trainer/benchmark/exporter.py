"""What the metrics endpoint costs a training run: the same loop with it and without, in turns."""

from __future__ import annotations

import dataclasses
import io
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from prometheus_client import CollectorRegistry, generate_latest

from dataloading.batch import Batch
from dataloading.loader import TrainLoader
from trainer.benchmark.hardware import hardware, versions
from trainer.benchmark.iteration import fresh_state, random_batch
from trainer.config import Config
from trainer.learning.state import TrainState
from trainer.recipes.catalogue import classes_of
from trainer.run.loop import Hooks, run_loop
from trainer.run.signals import Requests
from trainer.telemetry.prometheus import Exporter, RunRegistry, TelemetryConfig
from trainer.telemetry.telemetry import Telemetry
from trainer.telemetry.window import Reading

# A process of its own, as Prometheus is; while the endpoint is closed it asks in vain, at the same pace.
_SCRAPER = """
import sys, time, urllib.request
while True:
    time.sleep(float(sys.argv[2]))
    try: urllib.request.urlopen(sys.argv[1], timeout=5).read()
    except OSError: pass
"""
_NUM_ANSWERS = 100


class _SameBatch:
    """A loader of one batch that is on the device already: how a loader's speed varies is no part of this."""

    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        for _ in range(first, last):
            yield self._batch

    def ended_epoch(self, _: int) -> None:
        return None


def benchmark_exporter(
    config: Config,
    *,
    num_images: int,
    rounds: int = 40,
    seconds: float = 1.0,
    every: float = 1.0,
    device: torch.device | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """The training loop with its telemetry, in blocks of at least `seconds`; in every other one the endpoint listens
    and is scraped each `every` seconds (Prometheus is configured for 15). A round is a block of either kind, of equally
    many whole meta intervals; the order changes from round to round.

    rows        images per second of wall time by side: median, percentiles 20 and 80 over rounds
    change      of images/s by the endpoint: median over rounds of the ratio in a round, minus 1; and its standard error
    cpu_change  the same of the process's processor time per image, which other processes disturb less
    scrape_seconds  processor time of one answer: its share of `every` is the cost on one core
    Raises ValueError for a batch that has no two halves.
    """
    device = device or torch.device("cpu")
    if num_images < 4 or num_images % 2:
        raise ValueError(f"--batch is {num_images}; give an even number of at least 4: an iteration trains two halves")
    half = num_images // 2
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, update_batch=half, base_batch=half))
    num_classes = classes_of(config)
    state = fresh_state(config, num_classes, device)
    loader = cast(TrainLoader, _SameBatch(random_batch(config, state, num_images, num_classes)))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        telemetry = Telemetry(TelemetryConfig(), folder, num_iterations=1, stream=io.StringIO(), device=device)
        stack.enter_context(closing(telemetry))
        telemetry.start(0)
        hooks = Hooks(_logged_by(telemetry), lambda _: telemetry.beat(), lambda *_: False)
        requests = stack.enter_context(closing(Requests()))
        registry = RunRegistry(telemetry.metrics, "benchmark", 0)
        with closing(Exporter(registry, 9400, TelemetryConfig())) as found:
            port = found.port
        scraper = subprocess.Popen([sys.executable, "-c", _SCRAPER, f"http://127.0.0.1:{port}/metrics", str(every)])
        stack.callback(scraper.wait)
        stack.callback(scraper.kill)

        def block(iterations: int) -> tuple[float, float]:
            """(wall, processor) seconds of so many iterations."""
            wall, processor = time.perf_counter(), time.process_time()
            run_loop(state, loader, hooks, requests, state.progress.iteration + iterations)
            return time.perf_counter() - wall, time.process_time() - processor

        interval = config.meta.interval if config.sample_weights.enabled else 1  # one iteration of it takes longer
        block(interval)
        iterations = interval * math.ceil(seconds / block(interval)[0])
        seen: dict[str, list[tuple[float, float]]] = {"off": [], "on": []}
        for done in range(rounds):
            progress(f"round {done + 1} of {rounds}")
            for side in ("off", "on") if done % 2 == 0 else ("on", "off"):
                with ExitStack() as listening:
                    if side == "on":
                        listening.enter_context(closing(Exporter(registry, port, TelemetryConfig())))
                    seen[side].append(block(iterations))
        answer, scrape_seconds = _answer(registry)
    wall, processor = (
        {side: np.array([pair[which] for pair in pairs]) for side, pairs in seen.items()} for which in (0, 1)
    )
    rates = {side: iterations * num_images / taken for side, taken in wall.items()}
    change, error = _median_change(rates["on"] / rates["off"])
    cpu_change, cpu_error = _median_change(processor["on"] / processor["off"])
    return {
        "rows": [
            {
                "side": side,
                "images_per_second": float(np.median(rate)),
                "p20": float(np.percentile(rate, 20)),
                "p80": float(np.percentile(rate, 80)),
            }
            for side, rate in rates.items()
        ],
        "change": change,
        "change_error": error,
        "cpu_change": cpu_change,
        "cpu_change_error": cpu_error,
        "scrape_seconds": scrape_seconds,
        "scrape_bytes": len(answer),
        "every": every,
        "recipe": config.recipe,
        "batch": num_images,
        "rounds": rounds,
        "iterations": iterations,
        "hardware": hardware(device),
        "versions": versions(),
    }


def _logged_by(telemetry: Telemetry) -> Callable[[TrainState, Reading], None]:
    def log(state: TrainState, reading: Reading) -> None:
        done = {"iteration": state.progress.iteration, "epoch": 0.0, "learning_rate": state.lr}
        telemetry.train(reading.row() | done, reading.own)

    return log


def _answer(registry: CollectorRegistry) -> tuple[bytes, float]:
    """What a scrape gets, and the median of the processor seconds that writing it takes."""
    taken = []
    for _ in range(_NUM_ANSWERS):
        began = time.thread_time()
        answer = generate_latest(registry)
        taken.append(time.thread_time() - began)
    return answer, float(np.median(taken))


def _median_change(ratios: np.ndarray) -> tuple[float, float]:
    """Median of the ratios minus 1, and its standard error: that of a normal sample's median, from the quartiles."""
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    return float(middle - 1), float(1.2533 * (high - low) / 1.349 / math.sqrt(len(ratios)))
