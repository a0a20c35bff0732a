"""What a recipe will take here: memory, images a second, hours and cost, from a few steps of the real training loop."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from statistics import median

import psutil
import torch

from dataloading.batch import Batch
from dataloading.datasets.open import ImageSet
from trainer.benchmark.peak_memory import peak_bytes, peak_memory_mb
from trainer.config import Config
from trainer.doctor.finding import Finding
from trainer.evaluation.anytime import anytime
from trainer.learning.graphs import settling
from trainer.learning.precision import resolve_precision
from trainer.learning.state import Progress, TrainState
from trainer.run.build import build_net, build_state, scoring_loader, training_loader
from trainer.run.distributed import Ranks
from trainer.run.loop import Hooks, run_loop
from trainer.run.signals import Requests
from trainer.telemetry.window import Reading

_WARM_UP = 3
_META_EVERY = 6  # of the measured steps: enough with a meta step, enough without
_CPU_BATCH = 64  # images an iteration on a CPU, where a recipe's own would take minutes
_EVALUATED_BATCHES = 3
_FULL = 0.9  # of the memory there is


@dataclass(frozen=True)
class Forecast:
    """What a run of the recipe will take on as many devices as were measured.

    batch              images an iteration that was measured, over all ranks
    images_per_second  of training over all ranks, meta steps at the recipe's own interval among them
    data_wait_ratio    share of that time in which the net waits for images
    training_hours     of all epochs; evaluation_hours of their evaluations
    memory_bytes       at the peak of an iteration of one rank, memory_left what its device (or machine) had for it
    """

    recipe: str
    devices: int
    device: str
    batch: int
    images_per_second: float
    evaluated_per_second: float
    data_wait_ratio: float
    training_hours: float
    evaluation_hours: float
    memory_bytes: float
    memory_left: float

    @property
    def hours(self) -> float:
        return self.training_hours + self.evaluation_hours

    @property
    def device_hours(self) -> float:
        return self.hours * self.devices


def forecast(config: Config, images: ImageSet, ranks: Ranks, *, steps: int = 30, batch: int = 0) -> Forecast:
    """Collective over all ranks: `steps` iterations of the training loop on real images, and a little evaluation.

    batch  images of an iteration over all ranks; 0: the recipe's own, on a CPU at most 64
    The meta gradient is taken in every sixth iteration, whatever the recipe's interval, and the two kinds of iteration
    are weighed by that interval. On a CPU a smaller batch than the recipe's gives the rate, and processes of their own
    the memory, which is drawn out to the recipe's batch; on a GPU both are of the batch that is measured.
    """
    update = batch // 2 or config.optim.update_batch
    if not batch and ranks.device.type == "cpu":
        update = min(update, _CPU_BATCH // 2 * ranks.world_size)
    if update % ranks.world_size:
        raise ValueError(f"--batch is {batch}; half of it must be divisible by the {ranks.world_size} ranks")
    weighted = config.sample_weights.enabled
    readings, memory = _measure(_measured(config, update), images, ranks, steps)
    with_meta = [reading for reading in readings if reading.meta_loss is not None]
    plain = [reading for reading in readings if reading.meta_loss is None]
    share = 1 / config.meta.interval if weighted else 0.0
    seconds = share * _median(with_meta or plain) + (1 - share) * _median(plain or with_meta)
    rate = 2 * update / seconds
    evaluated = _evaluated_per_second(config, images, ranks)
    evaluations = -(-config.run.epochs // config.run.evaluate_every)
    if memory is None:
        memory = _memory_on_cpu(config, len(images.classes), ranks)
    left = _memory_left(ranks)
    return Forecast(
        recipe=config.recipe,
        devices=ranks.world_size,
        device=torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu",
        batch=2 * update,
        images_per_second=rate,
        evaluated_per_second=evaluated,
        data_wait_ratio=sum(r.data_wait_seconds for r in readings) / sum(r.seconds for r in readings),
        training_hours=config.run.epochs * len(images.train) / rate / 3600,
        evaluation_hours=evaluations * len(images.val) / evaluated / 3600,
        memory_bytes=memory,
        memory_left=left,
    )


def findings(found: Forecast, config: Config, price: float) -> Iterator[Finding]:
    """price  of a device and hour, 0 where nobody asked"""
    values = dataclasses.asdict(found) | {"hours": found.hours, "device_hours": found.device_hours}
    what = f"{found.devices} x {found.device}"
    said = f"{found.memory_bytes / 2**30:.2f} GiB at the peak of a rank, of {found.memory_left / 2**30:.1f}"
    if found.memory_bytes > _FULL * found.memory_left:
        double = 2 * config.optim.accumulation
        remedy = f"optim.accumulation={double} (the same update in smaller parts), optim.recompute=true, or more ranks"
        yield Finding("memory forecast", "fail", said, remedy)
    else:
        yield Finding("memory forecast", "pass", said)
    said = (
        f"{found.images_per_second:,.1f} images/s on {what} at {found.batch} an iteration; "
        f"{found.data_wait_ratio:.0%} of it waits for images; {found.evaluated_per_second:,.0f} evaluated a second"
    )
    if found.data_wait_ratio > 0.2:
        remedy = "more cores (data.num_threads), data.decode=gpu, or earlybird prepare with smaller images"
        yield Finding("rate forecast", "warn", said, remedy, values)
    else:
        yield Finding("rate forecast", "pass", said, values=values)
    cost = f", {price * found.device_hours:,.2f} at {price:g} a device and hour" if price else ""
    yield Finding(
        "time forecast",
        "pass",
        f"{config.run.epochs} epochs: {_hours(found.hours)} ({_hours(found.evaluation_hours)} of them evaluation), "
        f"{found.device_hours:,.2f} device hours{cost}",
        values={"price_per_device_hour": price, "cost": price * found.device_hours},
    )


def _measured(config: Config, update: int) -> Config:
    interval = min(config.meta.interval, _META_EVERY)
    optim = config.optim
    if update != optim.update_batch:
        optim = dataclasses.replace(optim, update_batch=update, accumulation=1, micro_batch=0)
    return dataclasses.replace(
        config,
        optim=optim,
        meta=dataclasses.replace(config.meta, interval=interval),
        run=dataclasses.replace(config.run, log_every=1),  # a reading an iteration, each waits for the device
    )


def _measure(config: Config, images: ImageSet, ranks: Ranks, steps: int) -> tuple[list[Reading], float | None]:
    """Readings of single iterations after the warm-up, and the peak of the GPU's memory; None on a CPU."""
    readings: list[Reading] = []
    # A tiny learning rate: the net is no one's, and its losses stay finite on any data.
    quiet = dataclasses.replace(config, optim=dataclasses.replace(config.optim, base_lr=1e-6, warmup_epochs=0.0))
    state = build_state(quiet, len(images.classes), Progress(0, 1 << 40), ranks)
    warm_up = _warm_up(state)
    loader = training_loader(config, images, ranks)

    def log(state: TrainState, reading: Reading) -> None:
        readings.append(reading)

    def trained(batch: Batch) -> None:
        if len(readings) == warm_up and ranks.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(ranks.device)

    hooks = Hooks(log, trained, lambda epoch, stop, save: stop)
    with closing(loader), closing(Requests()) as requests:
        if not run_loop(state, loader, hooks, requests, warm_up + steps):
            raise KeyboardInterrupt
    peak = peak_bytes(ranks.device, config.precision.cuda_graphs) if ranks.device.type == "cuda" else None
    return readings[warm_up:], peak


def _warm_up(state: TrainState) -> int:
    """Iterations until one is like any other of its kind; graphs are recorded by then, those of meta steps last."""
    if not state.network.precision.cuda_graphs:
        return _WARM_UP
    return settling(state) * state.config.meta.interval


def _median(readings: list[Reading]) -> float:
    return median(reading.seconds for reading in readings)


def _evaluated_per_second(config: Config, images: ImageSet, ranks: Ranks) -> float:
    """Images per second of scoring every exit, over all ranks."""
    precision = resolve_precision(config.precision, ranks.device)
    net = build_net(config, len(images.classes), precision)
    if ranks.device.type == "cpu":
        smaller = min(_CPU_BATCH, config.run.evaluation_batch)
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, evaluation_batch=smaller))
    with closing(scoring_loader(config, images.val, ranks)) as loader:
        for timed in (False, True):  # the first pass builds the pipeline and loads kernels
            began = time.perf_counter()
            batches = islice(iter(loader), _EVALUATED_BATCHES if timed else 1)
            rows = anytime(net, batches, precision)
        taken = time.perf_counter() - began
    return rows[0]["num_images"] / taken


def _memory_on_cpu(config: Config, num_classes: int, ranks: Ranks) -> float:
    """Of one rank at the recipe's batch: linear in the images, from two smaller ones."""
    optim = config.optim
    wanted = 2 * optim.update_batch // ranks.world_size // optim.micro_batches(ranks.world_size)
    config = dataclasses.replace(config, optim=dataclasses.replace(optim, accumulation=1, micro_batch=0))
    small = (min(wanted, _CPU_BATCH) // 2, min(wanted, _CPU_BATCH))
    few, many = (peak_memory_mb(config, max(4, size - size % 2), num_classes, ranks.device) or 0.0 for size in small)
    each = max(0.0, many - few) / max(1, small[1] - small[0])
    return 1e6 * (many + each * (wanted - small[1]))


def _memory_left(ranks: Ranks) -> float:
    """Of this rank's device, what its own measurement holds counted as left."""
    if ranks.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(ranks.device)
        return float(free + torch.cuda.memory_reserved(ranks.device))
    return psutil.virtual_memory().available / int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _hours(hours: float) -> str:
    return f"{hours:,.1f} hours" if hours >= 2 else f"{60 * hours:.1f} minutes"
