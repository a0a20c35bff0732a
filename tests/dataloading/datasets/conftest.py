"""A tiny image folder, and a cache folder of its own for every test."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES = ("ant", "bee", "cow")


def jpeg(seed: int) -> bytes:
    rng = np.random.default_rng(seed)
    width, height = rng.integers(8, 40, 2)
    stream = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "earlybird"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """3 classes, 4 training and 2 validation images each; one class's images one folder deeper."""
    root = tmp_path / "set"
    seed = 0
    for split, count in (("train", 4), ("val", 2)):
        for name in CLASSES:
            inside = root / split / name / ("deeper" if name == "cow" else "")
            inside.mkdir(parents=True)
            for number in range(count):
                seed += 1
                (inside / f"{number}.{'JPEG' if number % 2 else 'jpg'}").write_bytes(jpeg(seed))
            (root / split / name / "Thumbs.db").write_bytes(b"no image")
            (root / split / name / "._0.jpg").write_bytes(b"no image")
    return root
