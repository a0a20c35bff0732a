"""What inference costs in time: every exit for every image, each lever alone; then with images that leave early, beside
what their multiply-adds promise.

Time does not depend on weights or pixels: the nets are random and the images noise. All sides run in one process, one
after the other in every round and in reverse in every second one, after an untimed run of each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from kernels.exit_routing import shares
from trainer.benchmark.clock import seconds_of
from trainer.benchmark.hardware import hardware, versions
from trainer.benchmark.random_net import noise, random_net
from trainer.config import Config
from trainer.evaluation.budgeted import EVERYBODY, NOBODY, find_thresholds
from trainer.evaluation.early_exit import answer, at_exit
from trainer.evaluation.waiting_rooms import answer_stream
from trainer.learning.precision import PrecisionConfig, resolve_precision
from trainer.models.cost import exit_costs
from trainer.models.fold import DTYPES, folded, for_inference
from trainer.models.multi_exit import MultiExitNet
from trainer.recipes.catalogue import classes_of

BUDGETS = (0.25, 0.5, 0.75, 1.0, 1.5)
ALONE = 16  # images that run one at a time


@dataclass(frozen=True)
class Lever:
    """A net as it runs, and the format in which it takes its images."""

    net: MultiExitNet
    dtype: str
    memory_format: torch.memory_format
    compiled: bool = False

    def ready(self, images: Tensor) -> Tensor:
        """Images [n, 3, H, W] in float32, as this net takes them."""
        device = next(self.net.parameters()).device
        return images.to(device, DTYPES[self.dtype]).contiguous(memory_format=self.memory_format)


@dataclass(frozen=True)
class Side:
    """run    takes `num_images` through a lever's net; returns the exit (from 0) of each where images may leave early
    over   the label of the side that it is compared with
    asked  [K] shares of the images that are meant to leave at each exit
    """

    name: str
    over: str
    lever: Lever
    num_images: int
    run: Callable[[], list[Tensor]]
    budget: float | None = None
    asked: list[float] | None = None

    @property
    def label(self) -> str:
        return self.name if self.budget is None else f"{self.name} q {self.budget:g}"


def exit_ratios(text: str) -> tuple[float, ...]:
    """0.5,1 as numbers, each once. Raises ValueError."""
    try:
        ratios = tuple(dict.fromkeys(float(part) for part in text.split(",")))
    except ValueError:
        ratios = ()
    if not ratios or not all(ratio > 0 and math.isfinite(ratio) for ratio in ratios):
        raise ValueError(
            f"--budgets is {text!r}; give exit ratios above 0 with commas between them, as 0.5,1: below 1 most images "
            "leave early, above 1 late"
        )
    return ratios


def benchmark_inference(
    config: Config,
    *,
    num_images: int,
    num_batches: int = 8,
    budgets: Sequence[float] = BUDGETS,
    rounds: int = 5,
    dtype: str = "float32",
    with_compile: bool = False,
    device: torch.device | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Rows of images per second and of speed-ups, by name:

    baseline, folded, channels_last, bf16, fp16, compile
                 all exits of one batch of `num_images`, over `baseline` (float32, NCHW, eager, batch-norms as they
                 are); all but it are folded, those after `folded` channels-last; compile: in `dtype`
    full         all exits of a stream of `num_batches` batches, by the channels-last net in `dtype`, compiled if asked;
                 so all below, which are compared with it
    nobody       by `answer`, at thresholds that no image reaches: what looking at each exit costs
    early        by `answer`, batch after batch, at a budget's thresholds, which those very images set: the shares of
                 them that leave at each exit are the budget's
    refilled     by `answer_stream`, whose blocks wait for full batches
    alone_full, alone
                 as full and early, one image at a time, of at most 16 images that leave as all do

    speed_up: medians of the ratio of rates within a round; promised: Mul-Adds of the last exit over those of the exits
    that images really left at; share: speed_up / promised. Percentiles 20 and 80 are over rounds.
    milliseconds_per_image: of an image alone; null in rows of batches.
    Raises ValueError for sizes below 1, a budget whose shares overflow, or a dtype that the device lacks.
    """
    device = device or torch.device("cpu")
    for option, value in (("--batch", num_images), ("--batches", num_batches), ("--rounds", rounds)):
        if value < 1:
            raise ValueError(f"{option} is {value}; give 1 or more")
    K, num_classes = config.model.num_exits, classes_of(config)
    for budget in budgets:
        if not shares(budget, K).isfinite().all():
            raise ValueError(f"--budgets has {budget:g}, whose {K} shares overflow; give one nearer to 1")
    progress("the nets")
    images = noise(num_images * num_batches, config.data.image_size, config.seed + 1)
    levers, left_out = _levers(random_net(config, num_classes, device), dtype, with_compile, device)
    best = levers["compile" if with_compile else "channels_last" if dtype == "float32" else dtype]
    sides = {side.label: side for side in _all_exits(levers, images[:num_images])}
    sides |= {side.label: side for side in _early_exit(best, images, num_images, budgets, progress)}
    exits: dict[str, list[int]] = {}
    for label, side in sides.items():
        progress(f"{label}: warm-up")
        taken = side.run()
        if taken:
            exits[label] = torch.bincount(torch.cat(taken), minlength=K).tolist()
    seconds: dict[str, list[float]] = {label: [] for label in sides}
    for done in range(rounds):
        for label in list(sides) if done % 2 == 0 else list(sides)[::-1]:
            progress(f"round {done + 1} of {rounds}: {label}")
            seconds[label].append(seconds_of(sides[label].run, device))
    mul_adds = [cost.mul_adds for cost in exit_costs(config.model, num_classes, config.data.image_size)]
    rates = {label: side.num_images / np.array(seconds[label]) for label, side in sides.items()}
    return {
        "rows": [_row(side, rates, exits.get(label), mul_adds) for label, side in sides.items()],
        "recipe": config.recipe,
        "batch": num_images,
        "batches": num_batches,
        "rounds": rounds,
        "num_classes": num_classes,
        "image_size": config.data.image_size,
        "mul_adds": mul_adds,
        "left_out": left_out,
        "hardware": hardware(device),
        "versions": versions(),
    }


def _levers(
    net: MultiExitNet, dtype: str, with_compile: bool, device: torch.device
) -> tuple[dict[str, Lever], dict[str, str]]:
    """Every net to measure by its name, and those left out with the reason."""
    nchw, nhwc = torch.contiguous_format, torch.channels_last
    levers = {
        "baseline": Lever(net, "float32", nchw),
        "folded": Lever(folded(net), "float32", nchw),
        "channels_last": Lever(for_inference(net), "float32", nhwc),
    }
    left_out: dict[str, str] = {}
    for half in ("bf16", "fp16"):
        try:
            resolve_precision(PrecisionConfig(dtype=cast(Any, half)), device)
        except ValueError as error:
            if half == dtype:
                raise
            left_out[half] = str(error)
        else:
            levers[half] = Lever(for_inference(net, DTYPES[half]), half, nhwc)
    if with_compile:
        levers["compile"] = Lever(for_inference(net, DTYPES[dtype], compiled=True), dtype, nhwc, compiled=True)
    else:
        left_out["compile"] = "--no-compile"
    return levers, left_out


def _all_exits(levers: dict[str, Lever], images: Tensor) -> Iterator[Side]:
    for name, lever in levers.items():
        yield Side(name, "baseline", lever, len(images), _full(lever.net, [lever.ready(images)]))


def _early_exit(
    lever: Lever, images: Tensor, batch: int, budgets: Sequence[float], progress: Callable[[str], None]
) -> Iterator[Side]:
    """The sides that are compared with `full`, and those of images alone, with `alone_full`."""
    net, n = lever.net, len(images)
    stream = lever.ready(images)
    batches = list(stream.split(batch))
    single = list(stream[_spread(torch.arange(n))].split(1))
    yield Side("full", "full", lever, n, _full(net, batches))
    nobody = [NOBODY] * (net.num_exits - 1) + [EVERYBODY]
    yield Side("nobody", "full", lever, n, _early(net, batches, nobody))
    yield Side("alone_full", "alone_full", lever, len(single), _full(net, single))
    progress("what leaves where")
    confidences = _confidences(net, batches)
    for budget in budgets:
        asked = shares(budget, net.num_exits)
        thresholds = _halfway_down(confidences, find_thresholds(confidences, asked))
        at = (confidences >= torch.tensor(thresholds)).int().argmax(dim=1)
        sample = [stream[i : i + 1] for i in _spread(at.argsort(stable=True)).tolist()]
        for name, over, number, run in (
            ("early", "full", n, _early(net, batches, thresholds)),
            ("refilled", "full", n, _refilled(net, batches, thresholds)),
            ("alone", "alone_full", len(sample), _early(net, sample, thresholds)),
        ):
            yield Side(name, over, lever, number, run, budget, asked.tolist())


def _full(net: MultiExitNet, batches: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
    @torch.inference_mode()
    def run() -> list[Tensor]:
        for images in batches:
            net(images)
        return []

    return run


def _early(net: MultiExitNet, batches: Sequence[Tensor], thresholds: Sequence[float]) -> Callable[[], list[Tensor]]:
    return lambda: [answer(net, images, thresholds).exits for images in batches]


def _refilled(net: MultiExitNet, batches: Sequence[Tensor], thresholds: Sequence[float]) -> Callable[[], list[Tensor]]:
    return lambda: [said.exits for _, said in answer_stream(net, batches, thresholds, len(batches[0]))]


@torch.inference_mode()
def _confidences(net: MultiExitNet, batches: Sequence[Tensor]) -> Tensor:
    """[n, K] float32 on the host, of every image at every exit."""
    each = [[at_exit(k, logits).confidences for k, logits in enumerate(net(images))] for images in batches]
    return torch.cat([torch.stack(columns, dim=1) for columns in each]).cpu()


def _halfway_down(confidences: Tensor, thresholds: Tensor) -> list[float]:
    """[K] thresholds halfway to the next lower confidence: they part the same images, and no rounding of a kernel at
    another batch size moves one across."""
    lower = torch.where(confidences < thresholds, confidences, -1.0).amax(dim=0)
    return [*((thresholds + lower) / 2).tolist()[:-1], float(thresholds[-1])]


def _spread(rows: Tensor) -> Tensor:
    """At most ALONE of the rows [n], evenly spaced."""
    number = min(ALONE, len(rows))
    return rows[((torch.arange(number) + 0.5) * len(rows) / number).long()]


def _row(side: Side, rates: dict[str, np.ndarray], exits: list[int] | None, mul_adds: Sequence[int]) -> dict[str, Any]:
    mine = rates[side.label]
    speed_up, promised = float(np.median(mine / rates[side.over])), None
    if exits is not None:
        spent = sum(number * cost for number, cost in zip(exits, mul_adds, strict=True)) / sum(exits)
        promised = mul_adds[-1] / spent
    return {
        "name": side.name,
        "budget": side.budget,
        "dtype": side.lever.dtype,
        "compile": side.lever.compiled,
        "over": side.over,
        "num_images": side.num_images,
        "images_per_second": float(np.median(mine)),
        "p20": float(np.percentile(mine, 20)),
        "p80": float(np.percentile(mine, 80)),
        "speed_up": speed_up,
        "promised": promised,
        "share": None if promised is None else speed_up / promised,
        "asked": side.asked,
        "exits": exits,
        "milliseconds_per_image": 1e3 / float(np.median(mine)) if side.over == "alone_full" else None,
    }
