"""Accuracy class by class, and over classes of many, a medium number of and few training images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from torch import Tensor

MANY, FEW = 100, 20  # the field's bounds for long-tailed sets: many above 100 training images, few below 20
SIZES = {"many": f"many (above {MANY})", "medium": f"medium ({FEW} to {MANY})", "few": f"few (below {FEW})"}


class ClassRow(TypedDict):
    """One class: images that trained it, images it was scored on, and top-1 in percent of exits 1..K on these."""

    name: str
    num_train: int
    num_images: int
    top1: list[float]


class ShotRow(TypedDict):
    """Classes of `many` (above 100 training images), `medium` (20 to 100) or `few` (below 20) together.

    top1  percent of exits 1..K, mean over the group's classes, each counting alike
    """

    group: str
    num_classes: int
    num_images: int
    top1: list[float]


def per_class(correct: Tensor, labels: np.ndarray, train_labels: np.ndarray, classes: Sequence[str]) -> list[ClassRow]:
    """Rows of the classes that were scored, in their own order.

    correct  [M, K] bool, top-1 hits of images with `labels` [M], over all ranks; train_labels  of all that trains
    """
    C = len(classes)
    num_train, num_images = (np.bincount(values, minlength=C) for values in (train_labels, labels))
    hits = np.stack([np.bincount(labels, weights=column, minlength=C) for column in correct.numpy().T], axis=1)
    return [
        {
            "name": classes[c],
            "num_train": int(num_train[c]),
            "num_images": int(num_images[c]),
            "top1": [100 * float(hit) / int(num_images[c]) for hit in hits[c]],
        }
        for c in map(int, np.flatnonzero(num_images))
    ]


def by_shots(rows: Sequence[ClassRow]) -> list[ShotRow]:
    """Many, medium and few, those of them that have a class."""
    groups: dict[str, list[ClassRow]] = {"many": [], "medium": [], "few": []}
    for row in rows:
        groups["many" if row["num_train"] > MANY else "few" if row["num_train"] < FEW else "medium"].append(row)
    return [
        {
            "group": group,
            "num_classes": len(members),
            "num_images": sum(row["num_images"] for row in members),
            "top1": [float(value) for value in np.mean([row["top1"] for row in members], axis=0)],
        }
        for group, members in groups.items()
        if members
    ]
