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
    Levers are measured unweighted, against float32, NCHW, eager and torch's plain SGD (`baseline`); `all` has those
    that the device has units for (`slow` names the others, with the reason). The weighted rows have the levers of
    `config`, whose unweighted row is `plain` unless it is one of the levers' own. Interval 1 is measured; the rows that
    say so are computed from it and from the measured iteration without a meta step (interval null).
    whole_batch_memory_mb: of a plain step with all `num_images` in one update, beside which a meta step holds the two
    halves' activations; with the levers of `config`. memory_ratio: peak memory over it.
    updates: of the weight net in an iteration where it is due. Percentiles 20 and 80 are over rounds, ratios are
    medians of the ratio within a round.
    Raises ValueError for a batch that has no two halves, or with which the sides together do not fit on a GPU.
    """
    device = device or torch.device("cpu")
    if num_images < 4 or num_images % 2:
        raise ValueError(f"--batch is {num_images}; give an even number of at least 4: an iteration trains two halves")
    num_classes = classes_of(config)
    sides, left_out, slow = _sides(config, num_images, with_compile, device)
    memory: dict[str, float | None] = {}
    for side in sides:  # before any side holds memory of this process
        progress(f"{_label(side)}: memory")
        memory[_label(side)] = peak_memory_mb(side.config, num_images, num_classes, device)
    progress("the whole batch at once: memory")
    whole = peak_memory_mb(_whole_batch(config, num_images), 2 * num_images, num_classes, device)
    runners: dict[str, Callable[[], None]] = {}
    for side in sides:
        progress(f"{_label(side)}: warm-up")
        try:
            state = fresh_state(side.config, num_classes, device)
            batch = random_batch(side.config, state, num_images, num_classes)
            runners[_label(side)] = partial(iterate, state, batch, ready(state, batch))
        except torch.OutOfMemoryError as error:
            raise ValueError(
                f"--batch is {num_images}, with which {_label(side)} does not fit beside the sides before it; all stay "
                "in memory, to take turns: give fewer images"
            ) from error
    seconds: dict[str, list[float]] = {label: [] for label in runners}
    for done in range(rounds):
        progress(f"round {done + 1} of {rounds}")
        for label in list(runners) if done % 2 == 0 else list(runners)[::-1]:
            seconds[label].append(seconds_of(runners[label], device))
    rows = list(_rows(sides, {label: np.array(s) for label, s in seconds.items()}, num_images))
    for row in rows:
        peak = row["peak_memory_mb"] = memory[row["meta"] or row["name"]]
        row["memory_ratio"] = None if peak is None or whole is None else peak / whole
    return {
        "rows": rows,
        "whole_batch_memory_mb": whole,
        "recipe": config.recipe,
        "batch": num_images,
        "rounds": rounds,
        "left_out": left_out,
        "slow": slow,
        "hardware": hardware(device),
        "versions": versions(),
    }


def _sides(
    config: Config, num_images: int, with_compile: bool, device: torch.device
) -> tuple[list[Side], dict[str, str], dict[str, str]]:
    """Every side to measure, the levers left out with the reason, and those that `all` does without."""
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
    if device.type == "cuda":
        left_out["fused_sgd"] = "SGD that is not fused asks the host whether to step; every side has the fused one"
    else:
        left_out["cuda_graphs"] = "the device is no GPU"
    levers = {name: change for name, change in levers.items() if name not in left_out}
    slow = {}
    if "bf16" in levers and device.type == "cpu" and not torch.cpu._is_amx_tile_supported():
        slow["bf16"] = "a CPU without AMX multiplies float32 faster"
    levers["all"] = {key: value for name, change in levers.items() if name not in slow for key, value in change.items()}
    unweighted = dataclasses.replace(config.sample_weights, enabled=False)
    sides, plain = [], "plain"
    for name, change in levers.items():
        precision = dataclasses.replace(baseline, **change)
        fused = device.type == "cuda" or name in ("fused_sgd", "all")
        optim = dataclasses.replace(config.optim, backend="torch" if fused else "plain")
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
    return sides, left_out, slow


def _whole_batch(config: Config, num_images: int) -> Config:
    unweighted = dataclasses.replace(config.sample_weights, enabled=False)
    return dataclasses.replace(config, optim=_optim(config, 2 * num_images), sample_weights=unweighted)


def _optim(config: Config, num_images: int) -> Any:
    """The recipe's settings of SGD at the measured batch size."""
    return dataclasses.replace(config.optim, update_batch=num_images // 2, base_batch=num_images // 2)


def _label(side: Side) -> str:
    return side.meta or side.name


def _rows(sides: list[Side], seconds: dict[str, np.ndarray], num_images: int) -> Iterator[dict[str, Any]]:
    for side in sides:
        for interval in INTERVALS if side.meta else (None,):
            taken = seconds[_label(side)]
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
                "over": side.plain,
                "ratio_to_plain": float(np.median(taken / seconds[side.plain])),
            }
