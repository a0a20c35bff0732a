"""Gradients summed over ranks while the backward pass still runs, bucket by bucket, as DDP does for `.grad`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import torch.distributed as dist
from torch import Tensor

from trainer.learning.collectives import collective_spans

BUCKET_BYTES = 25 << 20  # DDP's: a message long enough for the network, short enough to begin early


@dataclass
class _Bucket:
    flat: Tensor
    missing: set[int] = field(default_factory=set)
    work: dist.Work | None = None


class OverlappedSum:
    """The sum over ranks of one gradient a leaf.

    What a bucket holds, and when it is its turn, follows from the leaves alone, last ones first: every rank asks for
    the same sums in the same order, whenever its gradients come.
    """

    def __init__(self, leaves: Sequence[Tensor], before: Sequence[Tensor] | None, size: int = BUCKET_BYTES) -> None:
        """before: gradients of earlier micro-batches, which count too. size: of a bucket, in bytes."""
        self._leaves, self._before = leaves, before
        self._buckets: list[_Bucket] = []
        self._views: dict[int, Tensor] = {}
        self._bucket_of: dict[int, _Bucket] = {}
        self._begun = 0
        places: list[int] = []
        for place in reversed(range(len(leaves))):
            full = sum(leaves[p].nbytes for p in places) + leaves[place].nbytes > size
            if places and (full or leaves[place].dtype != leaves[places[0]].dtype):
                self._add_bucket(places)
                places = []
            places.append(place)
        if places:
            self._add_bucket(places)

    def _add_bucket(self, places: Sequence[int]) -> None:
        like = self._leaves[places[0]]
        bucket = _Bucket(like.new_zeros(sum(self._leaves[p].numel() for p in places)), set(places))
        start = 0
        for place in places:
            leaf = self._leaves[place]
            # In the leaf's own layout, so that what reads both goes through memory alike.
            self._views[place] = bucket.flat.as_strided(leaf.shape, leaf.stride(), start)
            self._bucket_of[place] = bucket
            start += leaf.numel()
        self._buckets.append(bucket)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """The backward pass that gives the leaves' gradients runs inside."""
        hooks = [leaf.register_hook(partial(self._came, place)) for place, leaf in enumerate(self._leaves)]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _came(self, place: int, gradient: Tensor) -> None:
        self._views[place].copy_(gradient)
        self._ready(place)

    def _ready(self, place: int) -> None:
        if self._before is not None:
            self._views[place].add_(self._before[place])
        self._bucket_of[place].missing.remove(place)
        while self._begun < len(self._buckets) and not self._buckets[self._begun].missing:
            bucket = self._buckets[self._begun]
            bucket.work = dist.all_reduce(bucket.flat, async_op=True)
            self._begun += 1

    def wait(self) -> list[Tensor]:
        """The sums, one a leaf in its layout; zero where no rank's pass came by a leaf."""
        for place, bucket in self._bucket_of.items():
            if place in bucket.missing:
                self._ready(place)
        with collective_spans.span(self._leaves[0].device):
            for bucket in self._buckets:
                assert bucket.work is not None
                bucket.work.wait()
        return [self._views[place] for place in range(len(self._leaves))]
