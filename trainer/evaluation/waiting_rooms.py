"""Early exit for a stream of images: what goes on waits before the next block until a full batch has gathered.

On one batch later blocks see ever fewer images, which costs more an image. Here every block runs on full batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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

    def __len__(self) -> int:
        return len(self.positions)

    def each(self, change: Callable[[Tensor], Tensor]) -> _Group:
        """With every tensor changed."""
        before = None if self.before is None else change(self.before)
        return _Group(change(self.positions), each_once(change, self.features), before)


class _Tray:
    """Memory for one batch, used again and again; its first `filled` places are taken."""

    def __init__(self, batch: int) -> None:
        self._batch, self.filled = batch, 0
        self._memory: _Group | None = None

    def put(self, group: _Group, rows: Tensor) -> Tensor:
        """Copy the rows [m] of a group to the next free places; the rows for which there is none."""
        if self._memory is None:
            self._memory = group.each(lambda tensor: _rows_like(tensor, self._batch))
        rows, rest = rows[: self._batch - self.filled], rows[self._batch - self.filled :]
        places = self._memory.each(lambda tensor: tensor[self.filled : self.filled + len(rows)])
        _write(places.positions, group.positions, rows)
        each_once(lambda place, source: _write(place, source, rows), places.features, group.features)
        if places.before is not None and group.before is not None:
            _write(places.before, group.before, rows)
        self.filled += len(rows)
        return rest

    def take(self) -> _Group:
        """All that lies here, where it lies: to be read before anything is put here again."""
        assert self._memory is not None
        number, self.filled = self.filled, 0
        return self._memory.each(lambda tensor: tensor[:number])


class _Room:
    """Images that wait before one block, side by side where it reads them: copied once on their way.

    Two trays: what is more than a batch lies in the second one, which then is the first.
    """

    def __init__(self, batch: int) -> None:
        self._trays = [_Tray(batch), _Tray(batch)]

    @property
    def waiting(self) -> int:
        return sum(tray.filled for tray in self._trays)

    def put(self, group: _Group, rows: Tensor) -> None:
        """At most a batch of a group's rows [m], into a room that holds less than a batch."""
        for tray in self._trays:
            if len(rows):
                rows = tray.put(group, rows)

    def take(self) -> _Group:
        """A batch, or all where there is less, first come first served; good until as much has been put here again."""
        self._trays.reverse()
        return self._trays[1].take()


class WaitingRooms:
    """One before each block of `net` (in evaluation mode). A room runs as soon as it holds a full batch, so no two are
    full at once, and none ever holds more than 2 batch - 1 images. Each block that runs waits for the device once."""

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
            while (k := self._full()) is not None:
                said += self._run(k)
        return said

    @torch.inference_mode()
    def empty(self) -> list[Answered]:
        """Run what is left: with no room full, the shallowest one, so that its images join those that wait deeper."""
        said: list[Answered] = []
        while any(self.waiting):
            full = self._full()
            said += self._run(next(k for k, number in enumerate(self.waiting) if number) if full is None else full)
        return said

    def _full(self) -> int | None:
        return next((k for k, number in enumerate(self.waiting) if number >= self._batch), None)

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
        self._rooms[k + 1].put(_Group(group.positions, features, logits), (~leaves).nonzero()[:, 0])
        if not num_left:
            return []
        gone = leaves.nonzero()[:, 0]
        return [(group.positions[gone], said.of(gone))]


def _rows_like(tensor: Tensor, number: int) -> Tensor:
    """Memory for `number` rows like those of `tensor`, in its memory format."""
    if _channels_last(tensor):
        C, H, W = tensor.shape[1:]
        return tensor.new_empty((number, H, W, C)).permute(0, 3, 1, 2)
    return tensor.new_empty((number, *tensor.shape[1:]))


def _write(place: Tensor, source: Tensor, rows: Tensor) -> Tensor:
    """place[:] = source[rows] in one pass over memory.

    Channels-last memory is written as [n, H, W, C], in which nothing is left to guess: one channel's strides fit both
    layouts.
    """
    if _channels_last(source):
        place, source = place.permute(0, 2, 3, 1), source.permute(0, 2, 3, 1)
    return torch.index_select(source, 0, rows, out=place)


def _channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
