"""A loaded batch: its crossed halves, its micro-batches, and the one pass that normalises it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dataloading.batch import Batch, Normalization

NORMALIZATION = Normalization((0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def loaded(num_images: int, flip: bool = False) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num_images, 6, 5, 3), dtype=torch.uint8, generator=generator)
    mirrored = torch.arange(num_images) % 2 == 0 if flip else None
    ids = np.arange(num_images)
    return Batch(images, torch.arange(num_images), ids, normalization=NORMALIZATION, flip=mirrored)


@pytest.mark.parametrize("flip", [False, True])
def test_normalising_halves_is_normalising_the_whole(flip: bool) -> None:
    batch = loaded(8, flip)
    whole = batch.normalized(torch.float32, torch.contiguous_format)
    assert whole.images.is_contiguous()
    for pair, whole_pair in zip(batch.crossed_halves(), whole.crossed_halves(), strict=True):
        for half, whole_half in zip(pair, whole_pair, strict=True):
            assert torch.equal(half.normalized(torch.float32).images, whole_half.images)
            assert np.array_equal(half.ids, whole_half.ids)


def test_pixels_are_mirrored_and_normalised() -> None:
    batch = loaded(2, flip=True)
    pixels = batch.images.double() / 255
    pixels[0] = pixels[0].flip(1)
    expected = (pixels - torch.tensor(NORMALIZATION.mean)) / torch.tensor(NORMALIZATION.std)
    images = batch.normalized(torch.float64).images
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(images, expected.permute(0, 3, 1, 2), atol=1e-5)


def test_micro_batches_are_views_in_order() -> None:
    batch = loaded(12).normalized(torch.bfloat16)
    parts = batch.micro_batches(3)
    assert torch.equal(torch.cat([part.labels for part in parts]), batch.labels)
    assert parts[1].images.data_ptr() == batch.images[4].data_ptr()
    with pytest.raises(ValueError, match="5 equal micro-batches"):
        batch.micro_batches(5)


def test_an_odd_batch_has_no_halves() -> None:
    with pytest.raises(ValueError, match="no two equal halves"):
        next(loaded(3).crossed_halves())
