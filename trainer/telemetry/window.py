"""What happened since the last log step: sums on the device, read once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from trainer.learning.collectives import collective_spans, sum_over_ranks
from trainer.learning.iteration import HalfStep
from trainer.telemetry.spans import Mark, Spans, mark

QUANTILES = (0.05, 0.5, 0.95)
T = TypeVar("T")


@dataclass(frozen=True)
class Own:
    """A log step of this rank alone.

    images              that it trained on
    step_seconds        of each iteration, on the device: waiting for its batch included, saving and evaluating not
    collective_seconds  of them spent in collectives, which wait for the slowest rank
    """

    images: int
    step_seconds: list[float]
    collective_seconds: float

    @property
    def work_seconds(self) -> float:
        """Of an iteration, what waits for other ranks not counted."""
        return (sum(self.step_seconds) - self.collective_seconds) / max(1, len(self.step_seconds))


@dataclass(frozen=True)
class Reading:
    """One log step over all ranks; numbers are plain floats.

    loss, top1        [K] mean training loss and top-1 share of every exit
    meta_loss         mean over the meta steps of the window; None without one
    weight_quantiles  [K][3] 5, 50, 95 % quantiles of the last half's sample weights on this rank; None unweighted
    weight_easy, weight_hard  [K] mean weight of the half of the samples with the lower / higher loss at that exit
    images            over all ranks; seconds of wall time, data_wait_seconds of it spent waiting for the loader
    meta_step_seconds of the window's meta steps; None where they cannot be told apart, inside CUDA graphs
    own               what only this rank knows, no part of the row
    """

    loss: list[float]
    top1: list[float]
    meta_loss: float | None
    weight_quantiles: list[list[float]] | None
    weight_easy: list[float] | None
    weight_hard: list[float] | None
    images: int
    num_iterations: int
    seconds: float
    data_wait_seconds: float
    meta_step_seconds: float | None
    num_meta_steps: int
    own: Own

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds > 0 else 0.0

    @property
    def finite(self) -> bool:
        return all(x == x and abs(x) != float("inf") for x in self.loss)

    def row(self) -> dict[str, Any]:
        shared = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "own"}
        return {**shared, "images_per_second": self.images_per_second}


class Window:
    """Collects device tensors between log steps; `read` reduces them over ranks and waits for the device once."""

    def __init__(self, num_exits: int, device: torch.device) -> None:
        self.num_exits, self.device = num_exits, device
        self._start = time.perf_counter()
        self._meta_steps, self._steps = Spans(), Spans()
        self._step_began: Mark | None = None
        collective_spans.read()  # what was before is no part of this window
        self._clear()

    def _clear(self) -> None:
        # loss [K], top1 [K], samples, meta loss, meta steps
        self._sums = torch.zeros(2 * self.num_exits + 3, dtype=torch.float64, device=self.device)
        self._weights: Tensor | None = None
        self._losses: Tensor | None = None
        self.num_iterations = 0
        self.num_images = 0  # of this rank
        self.data_wait_seconds = 0.0

    def add(self, step: HalfStep, num_samples: int) -> None:
        """Add a half's sums of loss and top-1 hits [K], and its meta loss (already over all ranks) where it has one;
        keep its weights and losses [n, K] for the quantiles."""
        K = self.num_exits
        self._sums[:K] += step.trained["loss"]
        self._sums[K : 2 * K] += step.trained["top1"]
        self._sums[2 * K] += num_samples
        self.num_images += num_samples
        self._weights, self._losses = step.trained.get("weights"), step.trained["losses"]
        if step.looked_ahead:
            self._sums[2 * K + 1] += step.looked_ahead["meta_loss"]
            self._sums[2 * K + 2] += 1

    @contextmanager
    def meta_clock(self) -> Iterator[None]:
        """Times a meta step on the device."""
        with self._meta_steps.span(self.device):
            yield

    def fetched(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, counting the time that waiting for each took and the iterations begun."""
        source = iter(batches)
        while True:
            began, self._step_began = time.perf_counter(), mark(self.device)
            try:
                batch = next(source)
            except StopIteration:
                self._step_began = None
                return
            self.data_wait_seconds += time.perf_counter() - began
            self.num_iterations += 1
            yield batch

    def read(self) -> Reading:
        """Reduce over ranks, wait for the device (the one host sync of a log step), start a new window."""
        K = self.num_exits
        self._step_ended()
        with collective_spans.uncounted():  # no part of an iteration
            (totals,) = sum_over_ranks([self._sums])
        shape = torch.zeros(0, dtype=torch.float64, device=self.device)
        if self._weights is not None and self._losses is not None:
            shape = _weight_shape(self._weights, self._losses).reshape(-1)
        host = torch.cat([totals, shape]).tolist()
        samples, meta_loss, meta_steps = host[2 * K : 2 * K + 3]
        weights = [host[2 * K + 3 :][k * 5 : k * 5 + 5] for k in range(K)] if len(shape) else None
        now, timed = time.perf_counter(), self._meta_steps.read()
        reading = Reading(
            loss=[x / samples for x in host[:K]],
            top1=[x / samples for x in host[K : 2 * K]],
            meta_loss=meta_loss / meta_steps if meta_steps else None,
            weight_quantiles=[w[:3] for w in weights] if weights else None,
            weight_easy=[w[3] for w in weights] if weights else None,
            weight_hard=[w[4] for w in weights] if weights else None,
            images=int(samples),
            num_iterations=self.num_iterations,
            seconds=now - self._start,
            data_wait_seconds=self.data_wait_seconds,
            meta_step_seconds=sum(timed) if timed or not meta_steps else None,
            num_meta_steps=int(meta_steps),
            own=Own(self.num_images, self._steps.read(), sum(collective_spans.read())),
        )
        self._start = now
        self._clear()
        return reading

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not training time: an evaluation, a checkpoint."""
        self._step_ended()
        began = time.perf_counter()
        with collective_spans.uncounted():
            yield
        self._start += time.perf_counter() - began

    def _step_ended(self) -> None:
        if self._step_began is not None:
            self._steps.add(self._step_began, mark(self.device))
            self._step_began = None


def _weight_shape(weights: Tensor, losses: Tensor) -> Tensor:
    """[K, 5]: three quantiles of the weights, and their mean over the easier and the harder half of the samples."""
    weights, losses = weights.double(), losses.double()
    marks = torch.tensor(QUANTILES, dtype=torch.float64, device=weights.device)
    easy = losses <= losses.median(dim=0, keepdim=True).values
    means = [(weights * part).sum(dim=0) / part.sum(dim=0).clamp(min=1) for part in (easy, ~easy)]
    return torch.cat([weights.quantile(marks, dim=0).T, torch.stack(means, dim=1)], dim=1)
