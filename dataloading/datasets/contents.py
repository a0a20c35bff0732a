"""What splits hold, in numbers: classes, sizes, oddities, and what had to be left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from dataloading.index import FLAG_NAMES, Index
from dataloading.quarantine import Quarantined

_QUANTILES = {"min": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}


def contents(splits: Mapping[str, Index], quarantined: Iterable[Quarantined]) -> dict[str, Any]:
    """Plain values of a set: its splits (see split_contents), and what was left out, by reason and one by one."""
    left_out = list(quarantined)
    classes = next(iter(splits.values())).classes
    return {
        "num_images": sum(len(index) for index in splits.values()),
        "num_classes": len(classes),
        "classes": list(classes),
        "splits": {split: split_contents(index) for split, index in splits.items()},
        "num_quarantined": len(left_out),
        "quarantined": reasons(left_out),
        "quarantined_images": [asdict(image) for image in left_out],
    }


def split_contents(index: Index) -> dict[str, Any]:
    """One split: number of images, bytes as stored, images by class, quantiles of width and height in stored pixels
    (None without images), and how many images carry each flag."""
    counts = np.bincount(index.labels, minlength=index.num_classes)
    return {
        "num_images": len(index),
        "bytes": int(index.sizes.sum()),
        "images_by_class": {name: int(count) for name, count in zip(index.classes, counts, strict=True)},
        "width": _quantiles(index.widths),
        "height": _quantiles(index.heights),
        "flags": {
            name: int(np.count_nonzero(index.flags & bit))
            for bit, name in FLAG_NAMES.items()
            if (index.flags & bit).any()
        },
    }


def reasons(quarantined: Iterable[Quarantined]) -> dict[str, int]:
    """How many images were left out for each reason, in the reasons' alphabetical order."""
    return dict(sorted(Counter(image.reason for image in quarantined).items()))


def _quantiles(sides: np.ndarray) -> dict[str, int] | None:
    if not len(sides):
        return None
    values = np.quantile(sides, list(_QUANTILES.values()), method="nearest")
    return {name: int(value) for name, value in zip(_QUANTILES, values, strict=True)}
