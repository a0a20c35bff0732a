"""The held-out split: drawn from training rows by the seed, of the asked size, never more than half."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataloading.heldout import num_heldout, split_rows
from dataloading.index import Index


def rows(num_images: int) -> Index:
    return Index.build(["a", "b"], np.arange(num_images) % 2, [str(row) for row in range(num_images)])


@given(st.integers(2, 300), st.integers(0, 2**40), st.data())
def test_splits_the_rows(num_images: int, seed: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, num_images // 2).filter(lambda n: n != 0))
    train, heldout = split_rows(rows(num_images), number, seed)
    assert len(heldout) == number
    np.testing.assert_array_equal(np.sort(np.concatenate([train, heldout])), np.arange(num_images))
    for again, once in zip(split_rows(rows(num_images), number, seed), (train, heldout), strict=True):
        np.testing.assert_array_equal(again, once)


def test_share_or_number_and_the_seed() -> None:
    assert num_heldout(50_000 / 1_281_167, 1_281_167) == 50_000
    assert (num_heldout(0.1, 25), num_heldout(1.0, 25), num_heldout(0.0, 25)) == (2, 1, 0)
    first, second = (split_rows(rows(1000), 0.2, seed)[1] for seed in (0, 1))
    assert 10 < len(np.intersect1d(first, second)) < 80  # 40 are expected of two independent draws
    assert 60 < np.count_nonzero(first % 2) < 140  # spread over both classes


def test_more_than_half_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data.heldout keeps 51 of 100 .* at most half \(50\)"):
        split_rows(rows(100), 51, 0)
