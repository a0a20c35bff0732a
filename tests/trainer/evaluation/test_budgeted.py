from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.exit_losses import exit_losses
from kernels.exit_routing import shares as shares_of
from trainer.evaluation.budgeted import RATIOS, budgeted_batch, find_thresholds


def test_reference_vectors(vectors_folder: Path) -> None:
    files = sorted(vectors_folder.glob("budgeted_*.npz"))
    assert files
    for file in files:
        vectors = np.load(file)
        scores = exit_losses(list(torch.from_numpy(vectors["logits"])), torch.from_numpy(vectors["labels"]))
        N = int(vectors["num_heldout"])
        rows = budgeted_batch(
            scores.confidences[:N],
            scores.top1[:N],
            scores.confidences[N:],
            scores.top1[N:],
            vectors["mul_adds"].tolist(),
        )
        table = vectors["table"]
        assert [row["heldout_top1"] for row in rows] == pytest.approx(table[:, 1].tolist(), abs=1e-12)
        assert [row["top1"] for row in rows] == pytest.approx(table[:, 2].tolist(), abs=1e-12)
        ours = [[row["ratio"], row["mul_adds"], *row["thresholds"]] for row in rows]
        np.testing.assert_allclose(ours, table[:, [0, *range(3, table.shape[1])]], rtol=1e-6, atol=1e-6)


def _by_the_words(confidences: list[list[float]], shares: Tensor) -> list[float]:
    """METHOD.md section 6, sentence by sentence, over Python sets."""
    N, K = len(confidences), len(confidences[0])
    thresholds = [1e8] * (K - 1) + [-1e8]
    taken: set[int] = set()
    for k in range(K - 1):
        count = math.floor(N * shares[k])
        free = sorted((row[k] for i, row in enumerate(confidences) if i not in taken), reverse=True)
        if 0 < count <= len(free):
            thresholds[k] = free[count - 1]
        taken |= {i for i, row in enumerate(confidences) if row[k] >= thresholds[k]}
    return thresholds


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_thresholds_follow_the_words(data: st.DataObject) -> None:
    K, N = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 24))
    levels = st.integers(0, 8).map(lambda level: level / 8)  # few levels: many ties
    confidences = data.draw(st.lists(st.lists(levels, min_size=K, max_size=K), min_size=N, max_size=N))
    quotas = st.lists(st.integers(0, N), min_size=K, max_size=K).map(lambda counts: torch.tensor(counts) / N)
    shares = data.draw(st.sampled_from(RATIOS).map(lambda ratio: shares_of(ratio, K)) | quotas)
    assert find_thresholds(torch.tensor(confidences), shares).tolist() == _by_the_words(confidences, shares)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6), st.integers(1, 30), st.integers(0, 2**31))
def test_every_image_leaves_once_and_order_does_not_matter(num_exits: int, num_images: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    confidences = torch.rand(num_images, num_exits, generator=generator)
    correct = torch.rand(num_images, num_exits, generator=generator) < 0.5
    costs = [float(k) for k in range(1, num_exits + 1)]
    shuffle = torch.randperm(num_images, generator=generator)
    rows = budgeted_batch(confidences, correct, confidences, correct, costs)
    assert rows == budgeted_batch(confidences[shuffle], correct[shuffle], confidences[shuffle], correct[shuffle], costs)
    for row in rows:
        assert sum(row["exit_shares"]) == pytest.approx(1)
        assert row["mul_adds"] == pytest.approx(sum(p * c for p, c in zip(row["exit_shares"], costs, strict=True)))
        assert row["top1"] == row["heldout_top1"]  # the same images


def test_extreme_ratios_reach_both_ends_of_the_curve() -> None:
    confidences = torch.rand(1000, 3, generator=torch.Generator().manual_seed(0))
    correct = torch.tensor([[False, False, True]]).expand(1000, 3)
    rows = budgeted_batch(confidences, correct, confidences, correct, [1.0, 10.0, 100.0])
    assert len(rows) == 39
    assert rows[0]["exit_shares"][0] > 0.9
    assert rows[-1]["exit_shares"][-1] > 0.5
    assert rows[0]["top1"] < rows[-1]["top1"]


def test_refusals() -> None:
    good, hits = torch.rand(4, 2), torch.ones(4, 2, dtype=torch.bool)
    with pytest.raises(ValueError, match="one column for each of the 3 costs"):
        budgeted_batch(good, hits, good, hits, [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="at least one image"):
        budgeted_batch(good[:0], hits[:0], good, hits, [1.0, 2.0])
    with pytest.raises(ValueError, match="test confidence is not finite"):
        budgeted_batch(good, hits, good * math.nan, hits, [1.0, 2.0])
