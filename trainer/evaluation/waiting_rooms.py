"""Early exit for a stream of images: what goes on waits before the next block until a full batch has gathered.

On one batch later blocks see ever fewer images, which costs more an image. Here every block runs on full batches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.evaluation.early_exit import Answers, at_exit, check_thresholds, each_once, rows_of
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
    """Images that wait together: positions [m], what the next block reads of them, and their logits at the exit before
    (None before the first one)."""

    positions: Tensor
    features: list[Tensor]
    before: Tensor | None

    def cut(self, number: int) -> tuple[_Group, _Group]:
        """The first `number` images and the others, as views."""
        return self._part(slice(number)), self._part(slice(number, None))

    def _part(self, part: slice) -> _Group:
        features = each_once(lambda feature: feature[part], self.features)
        return _Group(self.positions[part], features, None if self.before is None else self.before[part])


class WaitingRooms:
    """One before each block of `net` (in evaluation mode). A room runs as soon as it holds a full batch, so no two are
    full at once, and none ever holds more than 2 batch - 1 images. Each block that runs waits for the device once."""

    def __init__(self, net: MultiExitNet, thresholds: Sequence[float], batch: int) -> None:
        check_thresholds(thresholds, net.num_exits)
        if batch < 1:
            raise ValueError(f"--batch is {batch}; give the number of images that run together, 1 or more")
        self._net, self._thresholds, self._batch = net, thresholds, batch
        self._rooms: list[list[_Group]] = [[] for _ in range(net.num_exits)]
        self._entered = 0

    @property
    def waiting(self) -> list[int]:
        """[K] images that wait before each block."""
        return [sum(len(group.positions) for group in room) for room in self._rooms]

    def enter(self, images: Tensor) -> list[Answered]:
        """Let images [n, 3, H, W] in, and run what is full then."""
        said: list[Answered] = []
        for part in images.split(self._batch) if len(images) else ():
            positions = torch.arange(self._entered, self._entered + len(part), device=part.device)
            self._entered += len(part)
            self._rooms[0].append(_Group(positions, [part], None))
            while (k := self._full()) is not None:
                said += self._run(k)
        return said

    def empty(self) -> list[Answered]:
        """Run what is left: with no room full, the shallowest one, so that its images join those that wait deeper."""
        said: list[Answered] = []
        while any(self._rooms):
            full = self._full()
            said += self._run(next(k for k, room in enumerate(self._rooms) if room) if full is None else full)
        return said

    def _full(self) -> int | None:
        return next((k for k, number in enumerate(self.waiting) if number >= self._batch), None)

    @torch.inference_mode()
    def _run(self, k: int) -> list[Answered]:
        """Block k on a batch of its room, or on all of a room that holds less: what leaves there; the rest goes on."""
        group = self._take(k)
        last = k == self._net.num_exits - 1
        features = self._net.stem(group.features[0]) if k == 0 else group.features
        features, logits = self._net.step(k, features, group.before)
        said = at_exit(k, logits)
        leaves = said.confidences >= self._thresholds[k]
        num_left = len(logits) if last else int(leaves.sum())
        if num_left == len(logits):
            return [(group.positions, said)]
        if not num_left:
            self._rooms[k + 1].append(_Group(group.positions, features, logits))
            return []
        gone, stay = leaves.nonzero()[:, 0], (~leaves).nonzero()[:, 0]
        self._rooms[k + 1].append(_Group(group.positions[stay], rows_of(features, stay), logits[stay]))
        return [(group.positions[gone], said.of(gone))]

    def _take(self, k: int) -> _Group:
        """At most a batch of what waits before block k, first come first served."""
        taken: list[_Group] = []
        room, missing = self._rooms[k], self._batch
        while room and missing:
            group = room.pop(0)
            if len(group.positions) > missing:
                group, rest = group.cut(missing)
                room.append(rest)  # the last to come is the one that is cut
            taken.append(group)
            missing -= len(group.positions)
        if len(taken) == 1:
            return taken[0]
        return _Group(
            torch.cat([group.positions for group in taken]),
            each_once(lambda *parts: joined(parts), *(group.features for group in taken)),
            torch.cat([group.before for group in taken if group.before is not None]) if k else None,
        )


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Features [n_i, C, H, W] as one [sum n_i, C, H, W], channels-last if they are.

    torch.cat takes one channel's strides, which fit both layouts, for NCHW; seen as [n, H, W, C] nothing is left to
    guess.
    """
    if all(part.is_contiguous(memory_format=torch.channels_last) for part in parts):
        return torch.cat([part.permute(0, 2, 3, 1) for part in parts]).permute(0, 3, 1, 2)
    return torch.cat(list(parts))
