"""Training from real images, end to end: earlybird beside what one would run without it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import repeat
from typing import Any

import numpy as np
import torch

from dataloading.batch import Batch
from dataloading.datasets.open import ImageSet
from dataloading.loader import train_loader
from trainer.benchmark.clock import synchronize
from trainer.benchmark.hardware import hardware, versions
from trainer.benchmark.iteration import fresh_state, iterate, random_batch
from trainer.benchmark.peak_memory import peak_memory_mb
from trainer.config import Config
from trainer.learning.graphs import Iteration, iteration_of, settling
from trainer.learning.precision import PrecisionConfig
from trainer.learning.state import TrainState


def benchmark_train(
    config: Config,
    images: ImageSet,
    *,
    num_images: int,
    rounds: int = 3,
    seconds: float = 20.0,
    device: torch.device | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Images per second of whole training iterations, loader included, by two sides that see the same images.

    earlybird  as configured: by default DALI, the device's own precision, the exact meta gradient
    usual      torch's DataLoader with Pillow; float32, NCHW, eager; the meta gradient by double backward; plain SGD
               (on a GPU fused: what is not asks the host whether to step)
    step       as earlybird, without a loader: one batch of noise on the device, what earlybird can reach at most
    All take the recipe's meta interval. Each round runs each side for at least `seconds` after a warm-up, one after
    the other, whole intervals of iterations; ratios are medians within a round. peak_memory_mb: of an iteration,
    without the loader.
    """
    device = device or torch.device("cpu")
    if num_images < 4 or num_images % 2:
        raise ValueError(f"--batch is {num_images}; give an even number of at least 4: an iteration trains two halves")
    if config.optim.accumulation > 1:
        raise ValueError(
            f"optim.accumulation is {config.optim.accumulation}, which double backward, the other side, cannot do; "
            "set optim.accumulation=1 and a --batch that fits"
        )
    half = num_images // 2
    optim = dataclasses.replace(config.optim, update_batch=half, base_batch=half)
    sides = {
        "usual": dataclasses.replace(
            config,
            optim=dataclasses.replace(optim, backend="plain" if device.type == "cpu" else "torch"),
            data=dataclasses.replace(config.data, loader="torchvision", decode="cpu"),
            precision=PrecisionConfig(dtype="float32", channels_last="off", compile=False),
            meta=dataclasses.replace(config.meta, form="double_backward", schedule="paper"),
        ),
        "earlybird": dataclasses.replace(config, optim=optim),
        "step": dataclasses.replace(config, optim=optim),
    }
    memory = {}
    for name in ("usual", "earlybird"):  # before any side holds memory of this process
        progress(f"{name}: memory")
        memory[name] = peak_memory_mb(sides[name], num_images, len(images.classes), device)
    memory["step"] = memory["earlybird"]
    states = {name: fresh_state(side, len(images.classes), device) for name, side in sides.items()}
    iterations = {name: iteration_of(state) for name, state in states.items()}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    waits: dict[str, list[float]] = {name: [] for name in sides}
    with ExitStack() as opened:
        # One loader a side for all rounds: when torch's DataLoader has forked its workers, this process copies every
        # page that it writes to, once, which takes seconds.
        batches = {
            name: repeat(random_batch(side, states[name], num_images, len(images.classes)))
            if name == "step"
            else opened.enter_context(_batches(side, states[name], images, half))
            for name, side in sides.items()
        }
        for done in range(rounds):
            for name in list(sides) if done % 2 == 0 else list(sides)[::-1]:
                progress(f"round {done + 1} of {rounds}: {name}")
                rate, wait = _timed(sides[name], states[name], iterations[name], batches[name], half, seconds)
                rates[name].append(rate)
                waits[name].append(wait)
    usual, step = np.array(rates["usual"]), np.array(rates["step"])
    return {
        "rows": [
            {
                "name": name,
                "loader": None if name == "step" else side.data.loader,
                "dtype": str(states[name].network.precision.dtype).removeprefix("torch."),
                "channels_last": states[name].network.precision.channels_last,
                "compile": side.precision.compile,
                "meta": _way(side),
                "interval": side.meta.interval if side.sample_weights.enabled else None,
                "images_per_second": float(np.median(rates[name])),
                "p20": float(np.percentile(rates[name], 20)),
                "p80": float(np.percentile(rates[name], 80)),
                "ratio_to_usual": float(np.median(np.array(rates[name]) / usual)),
                "ratio_to_step": float(np.median(np.array(rates[name]) / step)),
                "data_wait_ratio": float(np.median(waits[name])),
                "peak_memory_mb": memory[name],
            }
            for name, side in sides.items()
        ],
        "recipe": config.recipe,
        "data": {"name": images.name, "images": len(images.train)},
        "batch": num_images,
        "rounds": rounds,
        "seconds": seconds,
        "hardware": hardware(device),
        "versions": versions(),
    }


def _way(config: Config) -> str | None:
    if not config.sample_weights.enabled:
        return None
    return config.meta.form if config.meta.schedule == "paper" else config.meta.schedule


@contextmanager
def _batches(config: Config, state: TrainState, images: ImageSet, update_batch: int) -> Iterator[Iterator[Batch]]:
    """A training loader's batches without end, ready for the net, until the context ends."""
    precision = state.network.precision
    loader = train_loader(
        config.data, images.train, seed=config.seed, update_batch=update_batch, device=precision.device
    )
    with closing(loader), closing(loader.batches(0, 1 << 40)) as batches:  # type: ignore[type-var]
        yield (batch.normalized(precision.image_dtype, precision.memory_format) for batch in batches)


def _timed(
    config: Config,
    state: TrainState,
    iteration: Iteration,
    batches: Iterator[Batch],
    update_batch: int,
    seconds: float,
) -> tuple[float, float]:
    """(images per second, share of the time spent on getting batches) over whole meta intervals, after a warm-up."""
    device = state.network.precision.device
    _to_next_interval(state, config.meta.interval)
    for _ in range(settling(state)):
        for _ in range(2):  # the first has a meta step, the second one only where every iteration has
            iterate(state, next(batches), iteration)
        _to_next_interval(state, config.meta.interval)
    synchronize(device)
    waited, num_iterations, began = 0.0, 0, time.perf_counter()
    while (elapsed := time.perf_counter() - began) < seconds or num_iterations % config.meta.interval:
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        iterate(state, batch, iteration)
        num_iterations += 1
        if num_iterations % config.meta.interval == 0:
            synchronize(device)  # the clock that ends the loop must see the work done
    return num_iterations * 2 * update_batch / elapsed, waited / elapsed


def _to_next_interval(state: TrainState, interval: int) -> None:
    while state.progress.iteration % interval:
        state.advance()
