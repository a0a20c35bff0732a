"""What happened since the last log step: sums on the device, read once."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from trainer.learning.collectives import sum_over_ranks

QUANTILES = (0.05, 0.5, 0.95)
T = TypeVar("T")


@dataclass(frozen=True)
class Reading:
    """One log step over all ranks; numbers are plain floats.

    loss, top1        [K] mean training loss and top-1 share of every exit
    meta_loss         mean over the meta steps of the window; None without one
    weight_quantiles  [K][3] 5, 50, 95 % quantiles of the last half's sample weights on this rank; None unweighted
    weight_easy, weight_hard  [K] mean weight of the half of the samples with the lower / higher loss at that exit
    images            over all ranks; seconds of wall time, data_wait_seconds of it spent waiting for the loader
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
    meta_step_seconds: float
    num_meta_steps: int

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds > 0 else 0.0

    @property
    def finite(self) -> bool:
        return all(x == x and abs(x) != float("inf") for x in self.loss)

    def row(self) -> dict[str, Any]:
        return {**self.__dict__, "images_per_second": self.images_per_second}


class Window:
    """Collects device tensors between log steps; `read` reduces them over ranks and waits for the device once."""

    def __init__(self, num_exits: int, device: torch.device) -> None:
        self.num_exits, self.device = num_exits, device
        self._start = time.perf_counter()
        self._clear()

    def _clear(self) -> None:
        # loss [K], top1 [K], samples, meta loss, meta steps
        self._sums = torch.zeros(2 * self.num_exits + 3, dtype=torch.float64, device=self.device)
        self._weights: Tensor | None = None
        self._losses: Tensor | None = None
        self.num_iterations = 0
        self.data_wait_seconds = 0.0
        self._meta_times: list[tuple[torch.cuda.Event, torch.cuda.Event] | float] = []

    def trained(self, step: dict[str, Tensor], num_samples: int) -> None:
        """Add a train step's sums of loss and top-1 hits [K]; keep its weights and losses [n, K] for the quantiles."""
        K = self.num_exits
        self._sums[:K] += step["loss"]
        self._sums[K : 2 * K] += step["top1"]
        self._sums[2 * K] += num_samples
        self._weights, self._losses = step.get("weights"), step.get("losses")

    def looked_ahead(self, step: dict[str, Tensor]) -> None:
        """Add a meta step's loss, already over all ranks; nothing where it only kept what a later one needs."""
        if not step:
            return
        self._sums[2 * self.num_exits + 1] += step["meta_loss"]
        self._sums[2 * self.num_exits + 2] += 1

    @contextmanager
    def meta_clock(self) -> Iterator[None]:
        """Times a meta step on the device: by events on a GPU, which `read` asks once they are long past."""
        if self.device.type == "cuda":
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._meta_times.append((start, end))
        else:
            began = time.perf_counter()
            yield
            self._meta_times.append(time.perf_counter() - began)

    def fetched(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches, counting the time that waiting for each took and the iterations begun."""
        source = iter(batches)
        while True:
            began = time.perf_counter()
            try:
                batch = next(source)
            except StopIteration:
                return
            self.data_wait_seconds += time.perf_counter() - began
            self.num_iterations += 1
            yield batch

    def read(self) -> Reading:
        """Reduce over ranks, wait for the device (the one host sync of a log step), start a new window."""
        K = self.num_exits
        (totals,) = sum_over_ranks([self._sums])
        shape = torch.zeros(0, dtype=torch.float64, device=self.device)
        if self._weights is not None and self._losses is not None:
            shape = _weight_shape(self._weights, self._losses).reshape(-1)
        host = torch.cat([totals, shape]).tolist()
        samples, meta_loss, meta_steps = host[2 * K : 2 * K + 3]
        weights = [host[2 * K + 3 :][k * 5 : k * 5 + 5] for k in range(K)] if len(shape) else None
        meta_seconds = sum(t if isinstance(t, float) else t[0].elapsed_time(t[1]) / 1e3 for t in self._meta_times)
        now = time.perf_counter()
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
            meta_step_seconds=meta_seconds,
            num_meta_steps=int(meta_steps),
        )
        self._start = now
        self._clear()
        return reading

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time that is not training time: an evaluation, a checkpoint."""
        began = time.perf_counter()
        yield
        self._start += time.perf_counter() - began


def _weight_shape(weights: Tensor, losses: Tensor) -> Tensor:
    """[K, 5]: three quantiles of the weights, and their mean over the easier and the harder half of the samples."""
    weights, losses = weights.double(), losses.double()
    marks = torch.tensor(QUANTILES, dtype=torch.float64, device=weights.device)
    easy = losses <= losses.median(dim=0, keepdim=True).values
    means = [(weights * part).sum(dim=0) / part.sum(dim=0).clamp(min=1) for part in (easy, ~easy)]
    return torch.cat([weights.quantile(marks, dim=0).T, torch.stack(means, dim=1)], dim=1)
