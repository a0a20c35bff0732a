"""Normalised pixels against float64, once rounded; mirroring; layout."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.normalize import normalize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EVERY_BYTE = torch.arange(256, dtype=torch.uint8).repeat_interleave(3).reshape(1, 16, 16, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_every_byte_is_that_of_float64_rounded_once(dtype):
    mean, std = (torch.tensor(v, dtype=torch.float64)[:, None, None] for v in (MEAN, STD))
    exact = (EVERY_BYTE.permute(0, 3, 1, 2).double() / 255 - mean) / std
    ours = normalize(EVERY_BYTE, MEAN, STD, dtype)
    assert ours.dtype == dtype
    single = normalize(EVERY_BYTE, MEAN, STD)
    torch.testing.assert_close(single.double(), exact, rtol=3e-7, atol=3e-7)
    assert ours.equal(single.to(dtype))


@settings(deadline=None, max_examples=30)
@given(n=st.integers(1, 4), height=st.integers(1, 7), width=st.integers(1, 7), seed=st.integers(0, 1000))
def test_flip_mirrors_the_flagged_samples_and_the_layout_is_channels_last(n, height, width, seed):
    random = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (n, height, width, 3), dtype=torch.uint8, generator=random)
    flip = torch.rand(n, generator=random) < 0.5
    out = torch.empty(n, 3, height, width, memory_format=torch.channels_last)
    flipped = normalize(images, MEAN, STD, out=out, flip=flip)
    assert flipped is out
    plain = normalize(images, MEAN, STD)
    assert plain.is_contiguous(memory_format=torch.channels_last)
    for i in range(n):
        assert flipped[i].equal(plain[i].flip(2) if flip[i] else plain[i])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": EVERY_BYTE.float()}, "uint8"),
        ({"images": EVERY_BYTE.permute(0, 3, 1, 2)}, r"\[n, H, W, 3\]"),
        ({"std": (1.0, 0.0, 1.0)}, "std positive"),
        ({"dtype": torch.float64}, "cannot be torch.float64"),
        ({"flip": torch.zeros(2, dtype=torch.bool)}, r"bool \[1\]"),
        ({"out": torch.empty(1, 3, 16, 16, dtype=torch.float16)}, "it must be torch.float32"),
        ({"out": torch.empty(1, 3, 16, 16)}, "channels last"),
    ],
)
def test_refuses_what_does_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        normalize(**{"images": EVERY_BYTE, "mean": MEAN, "std": STD, **change})
