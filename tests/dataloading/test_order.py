"""The order of images: every epoch complete, memory independent of N, the same on every machine."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloading.order import Order


@settings(deadline=None)
@given(st.integers(1, 700), st.integers(0, 2**63 - 1), st.integers(0, 1000), st.booleans())
def test_every_epoch_is_a_permutation(num_images: int, seed: int, epoch: int, stored: bool) -> None:
    rows = Order(num_images, seed, stored).rows(epoch * num_images, (epoch + 1) * num_images)
    assert np.array_equal(np.sort(rows), np.arange(num_images))


@settings(deadline=None)
@given(st.integers(1, 300), st.booleans(), st.integers(0, 2000), st.floats(0, 2), st.floats(0, 2))
def test_any_cut_of_the_stream_is_the_same_stream(n: int, stored: bool, start: int, a: float, b: float) -> None:
    first, second = int(a * n), int(b * n)
    order = Order(n, 7, stored)
    whole = order.rows(start, start + first + second)
    other = Order(n, 7, stored)
    tail = other.rows(start + first, start + first + second)  # asked for first: no hidden state
    assert np.array_equal(whole, np.concatenate([other.rows(start, start + first), tail]))


@pytest.mark.parametrize("stored", [True, False])
def test_epochs_and_seeds_differ_and_look_shuffled(stored: bool) -> None:
    n = 20_000
    order = Order(n, 1, stored)
    first, second, other = order.rows(0, n), order.rows(n, 2 * n), Order(n, 2, stored).rows(0, n)
    for a, b in ((first, second), (first, other), (first, np.arange(n))):
        assert (a == b).sum() < 20  # 1 expected
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.03  # 4 standard deviations
    assert abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.03
    blocks = first.reshape(100, -1) // (n // 10)  # each tenth of the index, in each hundredth of the epoch: 20 expected
    counts = np.stack([np.bincount(block, minlength=10) for block in blocks])
    assert 700 < ((counts - 20) ** 2 / 20).sum() < 1100  # chi-square, 99 * 9 degrees of freedom, less a little


def test_the_first_rows_of_two_known_orders() -> None:
    """Pins the order itself: a resumed run must not depend on the versions of the libraries."""
    assert Order(1000, 5, stored=True).rows(0, 6).tolist() == [483, 190, 374, 880, 481, 197]
    assert Order(1000, 5, stored=False).rows(0, 6).tolist() == [320, 712, 616, 208, 140, 33]


def test_a_billion_rows_need_no_memory() -> None:
    n = 1_000_000_007
    tracemalloc.start()
    rows = Order(n, 3).rows(5 * n - 2048, 5 * n + 2048)  # across an epoch's end
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**21
    assert len(np.unique(rows[:2048])) == len(np.unique(rows[2048:])) == 2048
    assert rows.min() >= 0
    assert rows.max() < n
    assert rows.max() > n * 0.99


def test_imagenets_order_stays_small() -> None:
    n = 1_281_167
    order = Order(n, 0)
    order.rows(n - 10, n + 10)
    tracemalloc.start()
    order.rows(3 * n - 2048, 3 * n + 2048)
    kept, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert kept < 2 * n * 4 + 2**20  # two epochs' permutations
    assert peak < n * 40


def test_no_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.path"):
        Order(0, 0)
