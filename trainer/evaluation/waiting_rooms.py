"""Early exit for a stream of images: what goes on waits before the next block until a full batch has gathered.

On one batch later blocks see ever fewer images, which costs more an image. Here every block runs on full batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.evaluation.early_exit import Answers, at_exit, check_thresholds, each_once
from trainer.models.multi_exit import MultiExitNet

Answered = tuple[Tensor, Answers]  # [m] int64 positions in the stream, on the images' device, and what the net says


def answer_stream(
    net: MultiExitNet, batches: Iterable[Tensor], thresholds: Sequence[float], batch: int
) -> Iterator[Answered]:
    """What `answer` says of every image of `batches`, in the order in which images leave; `in_order` sorts it.

    batches  of images [n, 3, H, W], any n; positions count their images from 0
    batch    images that a block runs on, but for what is left at the end
    Raises ValueError at once where the thresholds do not fit the net, or for a batch below 1.
    """
    rooms = WaitingRooms(net, thresholds, batch)

    def answers() -> Iterator[Answered]:
        for images in batches:
            yield from rooms.enter(images)
        yield from rooms.empty()

    return answers()


@dataclass(frozen=True)
class _Group:
    """Images that run together: positions [m], what the next block reads of them, and their logits at the exit before
    (None before the first one)."""

    positions: Tensor
    features: list[Tensor]
    before: Tensor | None


class _Tray:
    """Room for one batch of images, side by side in memory that is used again and again."""

    def __init__(self, size: int) -> None:
        self._size, self.filled = size, 0
        self._memory: _Group | None = None

    @property
    def free(self) -> int:
        return self._size - self.filled

    def put(self, group: _Group, rows: Tensor) -> None:
        """Copy the rows [m] of a group to the next free places: the one copy on their way to the next block."""
        if self._memory is None:
            features = each_once(self._memory_like, group.features)
            before = None if group.before is None else self._memory_like(group.before)
            self._memory = _Group(self._memory_like(group.positions), features, before)
        memory, start = self._memory, self.filled
        _write(memory.positions, start, group.positions, rows)
        each_once(lambda to, source: _write(to, start, source, rows), memory.features, group.features)
        if memory.before is not None and group.before is not None:
            _write(memory.before, start, group.before, rows)
        self.filled += len(rows)

    def empty(self) -> _Group:
        """All that lies here, where it lies: to be read before anything is put here again."""
        assert self._memory is not None
        memory, number = self._memory, self.filled
        self.filled = 0
        features = each_once(lambda feature: feature[:number], memory.features)
        return _Group(memory.positions[:number], features, None if memory.before is None else memory.before[:number])

    def _memory_like(self, tensor: Tensor) -> Tensor:
        if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
            C, H, W = tensor.shape[1:]
            return tensor.new_empty((self._size, H, W, C)).permute(0, 3, 1, 2)
        return tensor.new_empty((self._size, *tensor.shape[1:]))


class _Room:
    """Two trays: what is more than a batch lies in the second one, which then is the first."""

    def __init__(self, batch: int) -> None:
        self._trays = [_Tray(batch), _Tray(batch)]

    @property
    def waiting(self) -> int:
        return sum(tray.filled for tray in self._trays)

    def put(self, group: _Group, rows: Tensor) -> None:
        """At most a batch of rows, into a room that is not full."""
        here = rows[: self._trays[0].free]
        self._trays[0].put(group, here)
        if len(here) < len(rows):
            self._trays[1].put(group, rows[len(here) :])

    def take(self) -> _Group:
        """A batch, or all where there is less, first come first served."""
        self._trays.reverse()
        return self._trays[1].empty()


class WaitingRooms:
    """One before each block of `net` (in evaluation mode). The deepest one that holds a full batch goes first, so none
    ever holds more than 2 batch - 1 images. Each block that runs waits for the device once."""

    def __init__(self, net: MultiExitNet, thresholds: Sequence[float], batch: int) -> None:
        check_thresholds(thresholds, net.num_exits)
        if batch < 1:
            raise ValueError(f"--batch is {batch}; give the number of images that run together, 1 or more")
        self._net, self._thresholds, self._batch = net, thresholds, batch
        self._rooms = [_Room(batch) for _ in range(net.num_exits)]
        self._entered = 0

    @property
    def waiting(self) -> list[int]:
        """[K] images that wait before each block."""
        return [room.waiting for room in self._rooms]

    @torch.inference_mode()
    def enter(self, images: Tensor) -> list[Answered]:
        """Let images [n, 3, H, W] in, and run what is full then."""
        said: list[Answered] = []
        for part in images.split(self._batch) if len(images) else ():
            positions = torch.arange(self._entered, self._entered + len(part), device=part.device)
            self._entered += len(part)
            self._rooms[0].put(_Group(positions, [part], None), torch.arange(len(part), device=part.device))
            while (k := self._deepest_full()) is not None:
                said += self._run(k)
        return said

    @torch.inference_mode()
    def empty(self) -> list[Answered]:
        """Run what is left: with no room full, the shallowest one, so that its images join those that wait deeper."""
        said: list[Answered] = []
        while any(self.waiting):
            full = self._deepest_full()
            said += self._run(next(k for k, number in enumerate(self.waiting) if number) if full is None else full)
        return said

    def _deepest_full(self) -> int | None:
        full = [k for k, number in enumerate(self.waiting) if number >= self._batch]
        return full[-1] if full else None

    def _run(self, k: int) -> list[Answered]:
        """Block k on a batch of its room, or on all of a room that holds less: what leaves there; the rest goes on."""
        group = self._rooms[k].take()
        last = k == self._net.num_exits - 1
        features = self._net.stem(group.features[0]) if k == 0 else group.features
        features, logits = self._net.step(k, features, group.before)
        said = at_exit(k, logits)
        leaves = said.confidences >= self._thresholds[k]
        num_left = len(logits) if last else int(leaves.sum())
        if num_left == len(logits):
            return [(group.positions.clone(), said)]
        stay = (~leaves).nonzero()[:, 0]
        self._rooms[k + 1].put(_Group(group.positions, features, logits), stay)
        if not num_left:
            return []
        gone = leaves.nonzero()[:, 0]
        return [(group.positions[gone], said.of(gone))]


def _write(to: Tensor, start: int, source: Tensor, rows: Tensor) -> Tensor:
    """to[start : start + m] = source[rows] in one pass; the place that was written.

    Channels-last memory is written as [n, H, W, C], in which nothing is left to guess: one channel's strides fit both
    layouts.
    """
    place = to[start : start + len(rows)]
    if to.dim() == 4 and to.is_contiguous(memory_format=torch.channels_last):
        torch.index_select(source.permute(0, 2, 3, 1), 0, rows, out=place.permute(0, 2, 3, 1))
    else:
        torch.index_select(source, 0, rows, out=place)
    return place
