"""Crops: inside the image, distributed as torchvision's, rounded as torchvision's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from dataloading.augment import DRAWS, evaluation_geometry, train_geometry
from dataloading.config import DataConfig

SIDES = st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), min_size=1, max_size=20)
IMAGENET, CIFAR = DataConfig(), DataConfig(augmentation="cifar", image_size=32)


def _sides(pairs: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([h for h, _ in pairs], np.int32), np.array([w for _, w in pairs], np.int32)


@settings(deadline=None)
@given(SIDES, st.integers(0, 2**32))
def test_imagenet_crops_lie_inside(pairs: list[tuple[int, int]], seed: int) -> None:
    heights, widths = _sides(pairs)
    geometry = train_geometry(IMAGENET, np.random.default_rng(seed).random((len(pairs), DRAWS)), heights, widths)
    top, left, height, width = geometry.crop.T
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= heights).all()
    assert (left + width <= widths).all()
    assert np.array_equal(geometry.inside(heights, widths), geometry.crop)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 333), (100, 700)])
def test_crops_are_distributed_as_torchvisions(height: int, width: int) -> None:
    n = 4000
    ours = train_geometry(
        IMAGENET, np.random.default_rng(0).random((n, DRAWS)), np.full(n, height), np.full(n, width)
    ).crop
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    draw = v2.RandomResizedCrop(224, antialias=True)
    theirs = np.array([list(draw.make_params([image]).values()) for _ in range(n)])
    for column in range(4):
        a, b = np.sort(ours[:, column]), np.sort(theirs[:, column])
        both = np.concatenate([a, b])
        distance = np.abs(np.searchsorted(a, both, "right") - np.searchsorted(b, both, "right")).max() / n
        assert distance < 1.95 * np.sqrt(2 / n)  # Kolmogorov-Smirnov at 0.001


def test_an_image_no_draw_fits_gets_the_largest_legal_centre_crop() -> None:
    heights, widths = np.array([10, 20_000, 1]), np.array([20_000, 10, 1])
    draws = np.full((3, DRAWS), 0.999)
    crop = train_geometry(IMAGENET, draws, heights, widths).crop
    assert crop.tolist() == [[0, 9993, 10, 13], [9993, 0, 13, 10], [0, 0, 1, 1]]


@settings(deadline=None)
@given(SIDES)
def test_evaluation_is_torchvisions_resize_and_centre_crop(pairs: list[tuple[int, int]]) -> None:
    from torchvision.transforms.functional import _compute_resized_output_size

    geometry = evaluation_geometry(IMAGENET, *_sides(pairs))
    for i, (height, width) in enumerate(pairs):
        assert geometry.resize[i].tolist() == _compute_resized_output_size((height, width), [256])
        assert geometry.crop[i].tolist() == [0, 0, height, width]
    assert (geometry.window >= 0).all()
    assert (geometry.window + 224 <= geometry.resize).all()
    assert geometry.window.tolist() == [[round((side - 224) / 2) for side in row] for row in geometry.resize.tolist()]
    assert not geometry.flip.any()


def test_cifar_crops_are_pad_and_crop() -> None:
    n = 3000
    geometry = train_geometry(CIFAR, np.random.default_rng(0).random((n, DRAWS)), np.full(n, 32), np.full(n, 32))
    shifts, counts = np.unique(geometry.crop[:, 0], return_counts=True)
    assert shifts.tolist() == list(range(-4, 5))
    assert counts.min() > n / 9 * 0.8
    assert (geometry.crop[:, 2:] == 32).all()
    assert (geometry.resize == 32).all()
    assert 0.45 < geometry.flip.mean() < 0.55


@settings(deadline=None)
@given(SIDES, st.integers(0, 2**32), st.integers(0, 31))
def test_cifar_crops_of_any_image_keep_some_of_it(pairs: list[tuple[int, int]], seed: int, padding: int) -> None:
    heights, widths = _sides(pairs)
    config = DataConfig(augmentation="cifar", image_size=32, padding=padding)
    geometry = train_geometry(config, np.random.default_rng(seed).random((len(pairs), DRAWS)), heights, widths)
    inside = geometry.inside(heights, widths)
    assert (inside[:, 2:] >= 1).all()
    assert (inside[:, :2] + inside[:, 2:] <= np.stack([heights, widths], 1)).all()
    assert (geometry.crop[:, :2] <= inside[:, :2]).all()
    assert (geometry.crop[:, 2:] == np.stack([heights, widths], 1)).all()
