"""Long-tailed training sets: class c keeps N_c * mu^c of its images (METHOD: long-tailed CIFAR)."""

from __future__ import annotations

import numpy as np

_STREAM = 0x4C54  # "LT": keeps this draw apart from every other use of the seed


def mu_of(imbalance_factor: float, num_classes: int) -> float:
    """mu at which the first class keeps `imbalance_factor` times the share of the last: IF^(-1/(C-1))."""
    return float(imbalance_factor ** (-1.0 / (num_classes - 1)))


def kept_per_class(counts: np.ndarray, mu: float) -> np.ndarray:
    """Images that each class keeps, floor(N_c * mu^c) and at least 1 of a class that has any.

    counts [C] images per class; mu in (0, 1]. Returns [C] int64. The product is rounded to 9 digits first, so that
    500 * 0.01^(99/99) is 5 and not 4.
    """
    kept = np.floor(np.round(counts * mu ** np.arange(len(counts)), 9)).astype(np.int64)
    return np.minimum(counts, np.maximum(kept, 1))


def long_tail_rows(labels: np.ndarray, num_classes: int, mu: float, seed: int) -> np.ndarray:
    """Sorted positions in `labels` [N] that stay; which images of a class stay is drawn by the seed."""
    kept = kept_per_class(np.bincount(labels, minlength=num_classes), mu)
    order = np.random.Generator(np.random.Philox(key=[seed, _STREAM])).permutation(len(labels))
    shuffled = labels[order]
    by_class = np.argsort(shuffled, kind="stable")
    starts = np.searchsorted(shuffled[by_class], np.arange(num_classes))
    rank_in_class = np.arange(len(labels)) - starts[shuffled[by_class]]
    return np.sort(order[by_class[rank_in_class < kept[shuffled[by_class]]]])
