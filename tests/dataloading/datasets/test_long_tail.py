"""Long-tailed sets have the class sizes that the field reports for CIFAR, whatever the order of the images."""

from __future__ import annotations

import dataclasses
import math
from fractions import Fraction

import numpy as np
import pytest

from dataloading.config import DataConfig
from dataloading.datasets.long_tail import kept_per_class, long_tail_rows, mu_of
from dataloading.datasets.open import ImageSet, open_dataset


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


@pytest.mark.parametrize(
    ("mu", "factor"), [(0.5, 0.0), (0.9, 0.0), (0.97, 0.0), (0.0, 10.0), (0.0, 50.0), (0.0, 100.0), (0.0, 1.0)]
)
def test_a_run_trains_on_the_rules_counts(mu: float, factor: float) -> None:
    """Every class: the integer part of N_c * mu^c, N_c what is not held out (of 1000 images 100 are)."""
    plain = DataConfig(source="synthetic", synthetic_images=1000, synthetic_classes=10, heldout=0.1)
    whole = open_dataset(plain, 3)
    cut = open_dataset(dataclasses.replace(plain, long_tail_mu=mu, imbalance_factor=factor), 3)
    share = Fraction(mu) if mu else None
    for c, (kept, of) in enumerate(zip(counts(cut), counts(whole), strict=True)):
        exact = of * share**c if share is not None else of * factor ** (-c / 9)
        assert kept == max(1, math.floor(exact + 1e-9)), (c, kept, of)
    assert cut.val.fingerprint == whole.val.fingerprint
    assert cut.heldout.fingerprint == whole.heldout.fingerprint
    assert (cut.fingerprint == whole.fingerprint) is (factor == 1.0)


def test_the_same_seed_keeps_the_same_images() -> None:
    config = DataConfig(
        source="synthetic", synthetic_images=1000, synthetic_classes=10, heldout=0, imbalance_factor=20.0
    )
    first, again, other = (open_dataset(config, seed) for seed in (3, 3, 4))
    assert first.fingerprint == again.fingerprint != other.fingerprint
    assert counts(first) == counts(other)
    assert {first.train.name(row) for row in range(len(first.train))} != {
        other.train.name(row) for row in range(len(other.train))
    }


def counts(images: ImageSet) -> list[int]:
    return [int(count) for count in np.bincount(images.train.labels, minlength=images.train.num_classes)]
