"""Accuracy class by class, and by how many training images a class has."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from trainer.evaluation.per_class import by_shots, per_class


def test_classes_by_hand() -> None:
    """Class a 1 of 2 then 2 of 2, b none of 1, c not scored."""
    correct = torch.tensor([[True, True], [False, False], [False, True]])
    rows = per_class(correct, np.array([0, 1, 0]), np.array([0, 0, 0, 2]), ["a", "b", "c"])
    assert rows == [
        {"name": "a", "num_train": 3, "num_images": 2, "top1": [50.0, 100.0]},
        {"name": "b", "num_train": 0, "num_images": 1, "top1": [0.0, 0.0]},
    ]


def test_shots_have_the_fields_bounds_and_count_classes_alike() -> None:
    sizes = [101, 100, 20, 19, 500]
    train = np.repeat(np.arange(5), sizes)
    labels = np.array([0, 0, 0, 1, 2, 3, 4])
    correct = torch.tensor([True, True, False, True, False, True, False])[:, None]
    groups = by_shots(per_class(correct, labels, train, list("abcde")))
    assert [(row["group"], row["num_classes"], row["num_images"]) for row in groups] == [
        ("many", 2, 4),
        ("medium", 2, 2),
        ("few", 1, 1),
    ]
    assert [row["top1"][0] for row in groups] == [pytest.approx((200 / 3 + 0) / 2), 50.0, 100.0]


def test_a_group_without_a_class_is_left_out() -> None:
    rows = per_class(torch.ones(2, 1, dtype=torch.bool), np.array([0, 1]), np.repeat([0, 1], 300), ["a", "b"])
    assert [row["group"] for row in by_shots(rows)] == ["many"]
