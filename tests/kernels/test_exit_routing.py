"""Routing against the rule read sample by sample, and quotas against the authors' numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.exit_routing import quotas, route, shares


def sequential(confidences: list[list[float]], counts: list[int]) -> list[int]:
    """The rule as one reads it: each exit in turn takes its quota of the most confident that are left."""
    left, exits = list(range(len(confidences))), [len(counts) - 1] * len(confidences)
    for k, count in enumerate(counts[:-1]):
        left.sort(key=lambda i: (-confidences[i][k], i))
        for i in left[:count]:
            exits[i] = k
        left = left[count:]
    return exits


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_route_is_the_sequential_rule_with_ties(data):
    n, K = data.draw(st.integers(1, 24)), data.draw(st.integers(1, 8))
    value = st.one_of(st.sampled_from([0.25, 0.5, 1.0, 0.0, -0.0]), st.floats(0, 1, width=32))
    confidences = [[data.draw(value) for _ in range(K)] for _ in range(n)]
    counts, left = [], n
    for _ in range(K - 1):
        counts.append(data.draw(st.integers(0, left)))
        left -= counts[-1]
    counts.append(left)
    table = torch.tensor(confidences, dtype=torch.float32)
    assert route(table, counts).tolist() == sequential(table.tolist(), counts)


def test_nan_is_the_least_confident_and_taken_once():
    confidences = torch.tensor([[float("nan"), 0.1], [-float("inf"), 0.9], [0.2, float("nan")]])
    assert route(confidences, [2, 1]).tolist() == [0, 1, 0]


@settings(deadline=None)
@given(n=st.integers(0, 100_000), ratio=st.floats(0.01, 3.0), K=st.integers(1, 8))
def test_quotas_are_counts_that_sum_to_all(n, ratio, K):  # noqa: N803
    counts = quotas(n, ratio, K)
    assert len(counts) == K
    assert sum(counts) == n
    assert min(counts) >= 0
    exact = [n * float(ratio) ** (k + 1) / sum(float(ratio) ** j for j in range(1, K + 1)) for k in range(K)]
    assert all(abs(count - value) < 1 + 1e-5 * value for count, value in zip(counts[:-1], exact[:-1], strict=True))


def test_the_product_is_rounded_in_float32_before_its_floor():
    # The share of exit 1 at q = 0.05 is just below 0.95: a hundred of it is 95 in float32 and 94.99... in float64.
    assert float(shares(0.05, 6)[0]) * 100 < 95
    assert quotas(100, 0.05, 6) == [95, 4, 0, 0, 0, 1]


def test_the_authors_routing(vectors_folder):
    files = sorted(vectors_folder.glob("meta_*.npz"))
    assert files
    for file in files:
        vector = np.load(file)
        ratio = json.loads(str(vector["settings"]))["exit_ratio"]
        expected = vector["exit_of_sample"]
        K = len(vector["exit_shares"])
        np.testing.assert_array_equal(shares(ratio, K).numpy(), vector["exit_shares"])
        confidences = torch.softmax(torch.from_numpy(vector["meta_logits"]), 2).amax(2).T
        counts = quotas(len(expected), ratio, K)
        assert counts == np.bincount(expected, minlength=K).tolist()
        assert route(confidences, counts).tolist() == expected.tolist()


def test_quotas_give_the_authors_budgeted_thresholds(vectors_folder):
    for file in sorted(vectors_folder.glob("budgeted_*.npz")):
        vector = np.load(file)
        n = int(vector["num_heldout"])
        confidences = torch.softmax(torch.from_numpy(vector["logits"][:, :n]), 2).amax(2)
        for row in vector["table"]:
            # The first exit's threshold is the confidence of its quota's last sample: a quota off by one shows.
            first = quotas(n, row[0], len(confidences))[0]
            assert confidences[0].sort(descending=True).values[first - 1].item() == pytest.approx(row[4], abs=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quotas(10, 0.0, 3), "ratio is 0.0"),
        (lambda: quotas(10, float("nan"), 3), "must be positive"),
        (lambda: quotas(10, 1.0, 0), "at least 1"),
        (lambda: quotas(-1, 1.0, 2), "-1 samples"),
        (lambda: route(torch.zeros(3, 2), [1, 1]), "sum to the 3 samples"),
        (lambda: route(torch.zeros(3, 2), [-1, 4]), "2 counts"),
        (lambda: route(torch.zeros(3), [3]), r"\[n, K\]"),
    ],
)
def test_refuses_what_does_not_fit(call, message):
    with pytest.raises(ValueError, match=message):
        call()
