"""Long-tailed sets have the class sizes that the field reports for CIFAR, whatever the order of the images."""

from __future__ import annotations

import numpy as np
import pytest

from dataloading.datasets.long_tail import kept_per_class, long_tail_rows, mu_of


@pytest.mark.parametrize(
    ("num_classes", "per_class", "factor", "total"),
    [(10, 5000, 100, 12406), (10, 5000, 10, 20431), (100, 500, 100, 10847), (100, 500, 10, 19573)],
)
def test_totals_of_long_tailed_cifar(num_classes: int, per_class: int, factor: float, total: int) -> None:
    kept = kept_per_class(np.full(num_classes, per_class), mu_of(factor, num_classes))
    assert kept.sum() == total
    assert (kept[0], kept[-1]) == (per_class, per_class // factor)


def test_rows_are_drawn_by_the_seed() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(4), 100))
    first, again, other = (long_tail_rows(labels, 4, 0.5, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(np.bincount(labels[first]), [100, 50, 25, 12])
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert np.all(np.diff(first) > 0)


def test_a_class_keeps_one_image_and_an_absent_class_none() -> None:
    np.testing.assert_array_equal(kept_per_class(np.array([10, 10, 0, 10]), 0.01), [10, 1, 0, 1])
    assert len(long_tail_rows(np.array([0, 0, 3]), 4, 0.01, 0)) == 3
