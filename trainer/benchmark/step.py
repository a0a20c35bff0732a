"""What a training iteration costs: each lever alone and all together, then the weights and every way to learn them.

An iteration is one loaded batch: two updates of the backbone. All sides run in one process on the same noise, one after
the other in every round and in reverse in every second one, after an untimed run of each.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from trainer.benchmark.clock import seconds_of
from trainer.benchmark.hardware import hardware, versions
from trainer.benchmark.iteration import NEVER, fresh_state, iterate, random_batch, ready
from trainer.benchmark.peak_memory import peak_memory_mb
from trainer.config import Config
from trainer.learning.meta_gradient import MetaConfig
from trainer.learning.precision import PrecisionConfig, resolve_precision
from trainer.recipes.catalogue import classes_of

INTERVALS = (1, 10, 100)
WAYS: dict[str, dict[str, Any]] = {
    "double_backward": {"form": "double_backward", "schedule": "paper"},
    "exact": {"form": "exact", "schedule": "paper"},
    "online": {"form": "exact", "schedule": "online"},
    "finite_difference": {"form": "finite_difference", "schedule": "paper"},
}


@dataclass(frozen=True)
class Side:
    """name and meta: of its rows; plain: the unweighted side of the same levers, by its name."""

    name: str
    plain: str
    config: Config
    meta: str | None = None


def benchmark_step(
    config: Config,
    *,
    num_images: int,
    rounds: int = 5,
    with_compile: bool = True,
    device: torch.device | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Rows of images per second, ratio of time to the unweighted iteration with the same levers, and peak memory.

    num_images  that an iteration loads: two update batches
    Levers are measured unweighted, against float32, NCHW, eager and torch's plain SGD (`baseline`). The weighted rows
    have the levers of `config`, whose unweighted row is `plain` unless it is one of the levers' own. Interval 1 is
    measured; the rows that say so are computed from it and from the measured iteration without a meta step (interval
    null).
    whole_batch_memory_mb: of a plain step with all `num_images` in one update, beside which a meta step holds the two
    halves' activations; with the levers of `config`.
    updates: of the weight net in an iteration where it is due. Percentiles 20 and 80 are over rounds, ratios are
    medians of the ratio within a round.
    Raises ValueError for a batch that has no two halves.
    """
    device = device or torch.device("cpu")
    if num_images < 4 or num_images % 2:
        raise ValueError(f"--batch is {num_images}; give an even number of at least 4: an iteration trains two halves")
    num_classes = classes_of(config)
    sides, left_out = _sides(config, num_images, with_compile, device)
    runners: dict[str, tuple[Side, Callable[[], None], float | None]] = {}
    for side in sides:
        label = _label(side)
        progress(f"{label}: warm-up")
        state = fresh_state(side.config, num_classes, device)
        batch = random_batch(side.config, state, num_images, num_classes)
        iteration = ready(state, batch)
        progress(f"{label}: memory")
        memory = peak_memory_mb(side.config, num_images, num_classes, device)
        runners[label] = (side, partial(iterate, state, batch, iteration), memory)
    seconds: dict[str, list[float]] = {label: [] for label in runners}
    for done in range(rounds):
        progress(f"round {done + 1} of {rounds}")
        for label in list(runners) if done % 2 == 0 else list(runners)[::-1]:
            seconds[label].append(seconds_of(runners[label][1], device))
    rows = list(_rows(runners, {label: np.array(s) for label, s in seconds.items()}, num_images))
    return {
        "rows": rows,
        "whole_batch_memory_mb": peak_memory_mb(_whole_batch(config, num_images), 2 * num_images, num_classes, device),
        "recipe": config.recipe,
        "batch": num_images,
        "rounds": rounds,
        "left_out": left_out,
        "hardware": hardware(device),
        "versions": versions(),
    }


def _sides(
    config: Config, num_images: int, with_compile: bool, device: torch.device
) -> tuple[list[Side], dict[str, str]]:
    """Every side to measure, and the levers left out with the reason."""
    config = dataclasses.replace(config, optim=_optim(config, num_images))
    own = resolve_precision(config.precision, device)
    baseline = PrecisionConfig(dtype="float32", channels_last="off")
    levers: dict[str, dict[str, Any]] = {
        "baseline": {},
        "fused_sgd": {},
        "channels_last": {"channels_last": "on"},
        "bf16": {"dtype": "bf16"},
        "compile": {"compile": True},
        "cuda_graphs": {"cuda_graphs": True},
    }
    left_out = {} if with_compile else {"compile": "--no-compile"}
    try:
        resolve_precision(PrecisionConfig(dtype="bf16"), device)
    except ValueError as error:
        left_out["bf16"] = str(error)
    if device.type != "cuda":
        left_out["cuda_graphs"] = "the device is no GPU"
    levers = {name: change for name, change in levers.items() if name not in left_out}
    levers["all"] = {key: value for change in levers.values() for key, value in change.items()}
    unweighted = dataclasses.replace(config.sample_weights, enabled=False)
    sides, plain = [], "plain"
    for name, change in levers.items():
        precision = dataclasses.replace(baseline, **change)
        optim = dataclasses.replace(config.optim, backend="torch" if name in ("fused_sgd", "all") else "plain")
        plain = name if (resolve_precision(precision, device), optim) == (own, config.optim) else plain
        side = dataclasses.replace(config, precision=precision, optim=optim, sample_weights=unweighted)
        sides.append(Side(name, "baseline", side))
    if plain == "plain":
        sides.append(Side(plain, plain, dataclasses.replace(config, sample_weights=unweighted)))
    weighted = dataclasses.replace(config, sample_weights=dataclasses.replace(config.sample_weights, enabled=True))
    sides.append(Side("weighted", plain, dataclasses.replace(weighted, meta=MetaConfig(interval=NEVER))))
    for way, change in WAYS.items():
        if way == "double_backward" and config.optim.accumulation > 1:
            left_out[way] = "it holds the whole half at once, and optim.accumulation is above 1"
            continue
        meta = dataclasses.replace(config.meta, interval=1, **change)
        sides.append(Side("weighted", plain, dataclasses.replace(weighted, meta=meta), way))
    return sides, left_out


def _whole_batch(config: Config, num_images: int) -> Config:
    unweighted = dataclasses.replace(config.sample_weights, enabled=False)
    return dataclasses.replace(config, optim=_optim(config, 2 * num_images), sample_weights=unweighted)


def _optim(config: Config, num_images: int) -> Any:
    """Plain SGD settings of the recipe at the measured batch size."""
    return dataclasses.replace(config.optim, update_batch=num_images // 2, base_batch=num_images // 2)


def _label(side: Side) -> str:
    return side.meta or side.name


def _rows(
    runners: dict[str, tuple[Side, Callable[[], None], float | None]], seconds: dict[str, np.ndarray], num_images: int
) -> Iterator[dict[str, Any]]:
    for label, (side, _, memory) in runners.items():
        for interval in INTERVALS if side.meta else (None,):
            taken = seconds[label]
            if interval is not None:
                taken = (taken + (interval - 1) * seconds["weighted"]) / interval
            rates = num_images / taken
            yield {
                "name": side.name,
                "meta": side.meta,
                "interval": interval,
                "updates": None if side.meta is None else 1 if side.meta == "online" else 2,
                "computed": interval not in (None, 1),
                "images_per_second": float(np.median(rates)),
                "p20": float(np.percentile(rates, 20)),
                "p80": float(np.percentile(rates, 80)),
                "ratio_to_plain": float(np.median(taken / seconds[side.plain])),
                "peak_memory_mb": memory,
            }
