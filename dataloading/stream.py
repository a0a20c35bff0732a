"""What each rank loads in each iteration: rows, crops and flips, a pure function of (seed, iteration, rank)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dataloading import philox
from dataloading.augment import DRAWS, Geometry, evaluation_geometry, train_geometry
from dataloading.config import DataConfig
from dataloading.index import Index
from dataloading.order import Order

_BLOCKS = DRAWS // philox.WORDS_PER_BLOCK


@dataclass(frozen=True)
class Plan:
    """One rank's share of one batch, before any byte is read.

    iteration  of the whole run (training), or step of the evaluation
    epoch      that the batch begins in (evaluation: 0)
    ids        [n] int64 rows
    geometry   of the n samples
    uniforms   [n, DRAWS] that the geometry was drawn from; None: an evaluation
    mask       [n] bool, evaluation only: False is padding, which no loader reads
    replaced   (row, reason) by place, of samples that could not be read
    """

    iteration: int
    epoch: int
    ids: np.ndarray
    geometry: Geometry
    uniforms: np.ndarray | None = None
    mask: np.ndarray | None = None
    replaced: dict[int, tuple[int, str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def with_row(self, place: int, row: int, reason: str, index: Index, config: DataConfig) -> Plan:
        """The same plan with image `row` at `place`, its crop drawn from the same uniforms. Training only."""
        assert self.uniforms is not None
        at = slice(row, row + 1)
        one = train_geometry(config, self.uniforms[place : place + 1], index.heights[at], index.widths[at])
        ids = self.ids.copy()
        ids[place] = row
        return replace(self, ids=ids, geometry=self.geometry.changed(place, one), replaced=self._noted(place, reason))

    def without(self, place: int, reason: str) -> Plan:
        """The same plan with the sample at `place` masked out. Evaluation only."""
        assert self.mask is not None
        mask = self.mask.copy()
        mask[place] = False
        return replace(self, mask=mask, replaced=self._noted(place, reason))

    def _noted(self, place: int, reason: str) -> dict[int, tuple[int, str]]:
        return self.replaced | {place: (int(self.ids[place]), reason)}


class Stream:
    """The endless training stream of one rank.

    A loaded batch is B = 2 * update_batch images over all ranks. Rank r of R takes the r-th of R equal slices of the
    first half and of the second, so that both of its halves are shares of the two global halves.
    Raises ValueError where the batch cannot be cut so, or is larger than the training set.
    """

    def __init__(
        self,
        index: Index,
        config: DataConfig,
        seed: int,
        update_batch: int,
        rank: int = 0,
        world_size: int = 1,
        accumulation: int = 1,
        stored_order: bool | None = None,
    ) -> None:
        check_batch(len(index), update_batch, world_size, accumulation)
        if config.augmentation == "cifar" and config.padding >= config.image_size:
            raise ValueError(
                f"data.padding is {config.padding}, the image only {config.image_size} pixels; choose a smaller padding"
            )
        self.index, self.config, self.seed = index, config, seed
        self.update_batch, self.rank, self.world_size = update_batch, rank, world_size
        self.order = Order(len(index), seed, stored_order)

    @property
    def loaded_batch(self) -> int:
        """B, images an iteration over all ranks."""
        return 2 * self.update_batch

    def first_iteration(self, epoch: int) -> int:
        """The first iteration that begins in `epoch`: ceil(epoch * N / B)."""
        return -(-epoch * len(self.index) // self.loaded_batch)

    def num_iterations(self, epochs: int) -> int:
        """Iterations until every image of `epochs` epochs has come: ceil(epochs * N / B)."""
        return self.first_iteration(epochs)

    def epoch_of(self, iteration: int) -> int:
        """The epoch that the iteration's first image belongs to."""
        return iteration * self.loaded_batch // len(self.index)

    def ended_epoch(self, num_done: int) -> int | None:
        """The epoch whose last image came in the last of `num_done` iterations; None where none ended there."""
        num_epochs = num_done * self.loaded_batch // len(self.index)
        return num_epochs - 1 if num_epochs and self.first_iteration(num_epochs) == num_done else None

    def plan(self, iteration: int) -> Plan:
        """This rank's [a-slice, b-slice] of iteration `iteration`, counted from 0 over the whole run."""
        share = self.update_batch // self.world_size
        ids, draws = [], []
        for half in (0, 1):
            start = iteration * self.loaded_batch + half * self.update_batch + self.rank * share
            for epoch, place, end in self.order.spans(start, start + share):
                ids.append(self.order.rows_of_epoch(epoch, place, end))
                numbers = philox.uniforms(self.seed, epoch, "augmentation", place * _BLOCKS, (end - place) * DRAWS)
                draws.append(numbers.reshape(-1, DRAWS))
        rows, uniforms = np.concatenate(ids), np.concatenate(draws)
        geometry = train_geometry(self.config, uniforms, self.index.heights[rows], self.index.widths[rows])
        return Plan(iteration, self.epoch_of(iteration), rows, geometry, uniforms)

    def plans(self, start: int, end: int) -> Iterator[Plan]:
        """The plans of iterations [start, end)."""
        return (self.plan(iteration) for iteration in range(start, end))

    def trace(self, iteration: int) -> list[dict[str, Any]]:
        """The plan as plain values, one entry a sample: what this rank sees and how it is cut."""
        plan = self.plan(iteration)
        g = plan.geometry
        return [
            {
                "iteration": iteration,
                "epoch": (iteration * self.loaded_batch + self._offset(i)) // len(self.index),
                "rank": self.rank,
                "half": "ab"[i >= len(plan) // 2],
                "row": int(row),
                "name": self.index.name(int(row)),
                "label": self.index.classes[self.index.labels[row]],
                "crop": g.crop[i].tolist(),
                "flip": bool(g.flip[i]),
            }
            for i, row in enumerate(plan.ids)
        ]

    def _offset(self, place: int) -> int:
        """Where the rank's sample `place` lies in the global batch."""
        share = self.update_batch // self.world_size
        half, within = divmod(place, share)
        return half * self.update_batch + self.rank * share + within


def check_batch(num_images: int, update_batch: int, world_size: int, accumulation: int) -> None:
    """ValueError where `update_batch` images cannot be shared by the ranks, or two halves exceed the training set."""
    parts = world_size * accumulation
    if update_batch < 1 or update_batch % parts:
        nearest = max(parts, update_batch // parts * parts)
        raise ValueError(
            f"optim.update_batch is {update_batch}; {world_size} ranks with optim.accumulation {accumulation} need a "
            f"positive multiple of {parts}: --set optim.update_batch={nearest}"
        )
    if num_images < 2 * update_batch:
        largest = num_images // 2 // parts * parts
        remedy = f"--set optim.update_batch={largest}" if largest else f"use fewer ranks than {world_size}"
        raise ValueError(
            f"the training set has {num_images} images, one loaded batch two times optim.update_batch {update_batch}, "
            f"{2 * update_batch}: {remedy}"
        )


def evaluation_plans(
    index: Index, config: DataConfig, batch_size: int, rank: int = 0, world_size: int = 1
) -> Iterator[Plan]:
    """Every row exactly once over all ranks, in order, in equally many and equally large steps on every rank.

    A step is world_size * batch_size rows, the last one as few as are left; where they do not divide by the ranks, the
    last places are padding (mask False).
    """
    if batch_size < 1:
        raise ValueError(f"the evaluation batch is {batch_size}; it must be at least 1")
    for step, first in enumerate(range(0, len(index), world_size * batch_size)):
        size = min(batch_size, -(-(len(index) - first) // world_size))
        places = first + rank * size + np.arange(size, dtype=np.int64)
        mask = places < len(index)
        rows = np.minimum(places, len(index) - 1)
        yield Plan(step, 0, rows, evaluation_geometry(config, index.heights[rows], index.widths[rows]), None, mask)
