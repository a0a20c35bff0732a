"""Inference that stops early: an image leaves the batch at the exit that is sure enough, and the rest goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.models.multi_exit import MultiExitNet


@dataclass(frozen=True)
class Answers:
    """What a net says of n images, in the order they came in.

    logits       [n, C] of the exit each image left at, in the net's dtype
    confidences  [n] float32 (float64 for float64 logits), the largest softmax
    classes      [n] int64, the most likely class
    exits        [n] int64, counted from 0
    """

    logits: Tensor
    confidences: Tensor
    classes: Tensor
    exits: Tensor

    def of(self, chosen: Tensor) -> Answers:
        """Those of the chosen images [m]."""
        return Answers(self.logits[chosen], self.confidences[chosen], self.classes[chosen], self.exits[chosen])


@torch.inference_mode()
def answer(net: MultiExitNet, images: Tensor, thresholds: Sequence[float]) -> Answers:
    """Run block after block of `net` (in evaluation mode) on the images that are left (METHOD: budgeted batch).

    images      [n, 3, H, W]; what leaves is taken out of every feature, so that later blocks see a smaller batch
    thresholds  [K]; an image leaves at the first exit whose confidence reaches its threshold, at the last one anyway
    Each exit waits for the device once: the size of what goes on must be known.
    Raises ValueError where there are not K thresholds.
    """
    check_thresholds(thresholds, net.num_exits)
    features, before = net.stem(images), None
    waiting: Tensor | None = None  # rows of `images` that are still in the batch; None: all of them
    parts: list[tuple[Tensor | None, Answers]] = []
    for k in range(net.num_exits):
        features, logits = net.step(k, features, before)
        said = at_exit(k, logits)
        leaves = said.confidences >= thresholds[k]
        num_left = len(logits) if k == net.num_exits - 1 else int(leaves.sum())
        if num_left == len(logits):
            parts.append((waiting, said))
            break
        before = logits
        if num_left:
            gone, stay = leaves.nonzero()[:, 0], (~leaves).nonzero()[:, 0]
            parts.append((gone if waiting is None else waiting[gone], said.of(gone)))
            waiting = stay if waiting is None else waiting[stay]
            features = rows_of(features, stay)
            before = logits[stay]
    return in_order(parts)


def check_thresholds(thresholds: Sequence[float], num_exits: int) -> None:
    """ValueError unless there is one number an exit."""
    if len(thresholds) != num_exits or any(value != value for value in thresholds):
        raise ValueError(f"thresholds are {list(thresholds)}; give {num_exits} numbers, one an exit")


def at_exit(k: int, logits: Tensor) -> Answers:
    """What logits [n, C] of exit k (from 0) say."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    confidences, classes = wide.softmax(dim=1).max(dim=1)
    return Answers(logits, confidences, classes, torch.full_like(classes, k))


def rows(feature: Tensor, chosen: Tensor) -> Tensor:
    """The chosen rows [m] of a feature [n, C, H, W], in its memory format, which torch's index_select loses."""
    if feature.is_contiguous(memory_format=torch.channels_last):
        return feature.permute(0, 2, 3, 1).index_select(0, chosen).permute(0, 3, 1, 2)
    return feature.index_select(0, chosen)


def rows_of(features: Sequence[Tensor], chosen: Tensor) -> list[Tensor]:
    """`rows` of every feature."""
    return each_once(lambda feature: rows(feature, chosen), features)


def each_once(change: Callable[..., Tensor], *lists: Sequence[Tensor]) -> list[Tensor]:
    """change(a, b, ..) of what stands at the same place of each list, once for the same tensors at several places: a
    RANet's history holds a block's last output two and three times."""
    made: dict[tuple[int, ...], Tensor] = {}
    places = list(zip(*lists, strict=True))
    for place in places:
        key = tuple(map(id, place))
        if key not in made:
            made[key] = change(*place)
    return [made[tuple(map(id, place))] for place in places]


def in_order(parts: Sequence[tuple[Tensor | None, Answers]]) -> Answers:
    """One Answers of many, each with the rows [m] that its images came in at; None, of a single one: as they stand."""
    if len(parts) == 1 and parts[0][0] is None:
        return parts[0][1]
    order = torch.cat([rows for rows, _ in parts if rows is not None]).argsort()
    answers = [said for _, said in parts]
    return Answers(
        torch.cat([said.logits for said in answers])[order],
        torch.cat([said.confidences for said in answers])[order],
        torch.cat([said.classes for said in answers])[order],
        torch.cat([said.exits for said in answers])[order],
    )
