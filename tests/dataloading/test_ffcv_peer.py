"""FFCV beside the loader: what no FFCV can be had from is refused, an unreadable image ends its writer, a round counts.

The tests of FFCV itself need EARLYBIRD_FFCV_PYTHON, the interpreter of an environment that has ffcv.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataloading.benchmark import benchmark_loader
from dataloading.config import DataConfig
from dataloading.ffcv_peer import FfcvPeer, ffcv_here
from dataloading.index import PIXELS, Index


@pytest.fixture
def peer() -> Iterator[FfcvPeer]:
    python = os.environ.get("EARLYBIRD_FFCV_PYTHON") or ffcv_here()
    if not python:
        pytest.skip("EARLYBIRD_FFCV_PYTHON is not set: no interpreter that has ffcv")
    with FfcvPeer(python, threads=2) as peer:
        yield peer


def _photographs(folder: Path, count: int = 10) -> Path:
    noise = np.random.default_rng(0)
    for row in range(count):
        file = folder / f"{row % 3:05d}" / f"{row}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (30 + row, 50 - row, 3), dtype=np.uint8)).save(file, quality=95)
    return folder


@pytest.mark.parametrize("python", ["no-such-python", "/", "cat", "false"])
def test_an_interpreter_without_ffcv_is_refused(python: str) -> None:
    with pytest.raises(ValueError, match=rf"^{python} cannot import ffcv \(.+\); give --ffcv-python the interpreter"):
        FfcvPeer(python, threads=1)


@pytest.mark.skipif(bool(ffcv_here()), reason="this interpreter has ffcv")
def test_this_interpreter_is_refused_with_its_own_words() -> None:
    with pytest.raises(ValueError, match="No module named 'ffcv'"):
        FfcvPeer(sys.executable, threads=1)


def test_plain_pixels_have_no_decoder_to_compare(tmp_path: Path) -> None:
    size = 8 * 8 * 3
    (tmp_path / "pixels").write_bytes(bytes(4 * size))
    pixels = Index.build(
        "a",
        np.zeros(4),
        list("0123"),
        containers=[str(tmp_path / "pixels")],
        container=np.zeros(4),
        sizes=np.full(4, size),
        offsets=np.arange(4) * size,
        heights=np.full(4, 8),
        widths=np.full(4, 8),
        flags=np.full(4, PIXELS),
    )
    with pytest.raises(ValueError, match="--ffcv-python is anywhere, but the set holds plain pixels"):
        benchmark_loader(DataConfig(), pixels, ffcv_python="anywhere")


def test_rounds_after_rounds_count_whole_batches(peer: FfcvPeer, tmp_path: Path) -> None:
    assert set(peer.versions) == {"ffcv", "numba", "torch"}
    folder = _photographs(tmp_path / "images")
    peer.write(folder, tmp_path / "ffcv", image_size=24, batch_size=8)
    assert peer.versions["threading_layer"]
    written, original = 10 * peer.mean_bytes, sum(file.stat().st_size for file in folder.rglob("*.jpg"))
    assert 0.3 * original < written < original  # JPEG, of lower quality and of the same size
    assert all(peer.images_per_second(0.05, warm_up=2) > 0 for _ in range(2))


def test_an_unreadable_image_ends_the_writer_with_its_words(peer: FfcvPeer, tmp_path: Path) -> None:
    folder = _photographs(tmp_path / "images")
    broken = folder / "00001" / "4.jpg"
    broken.write_bytes(b"no image")
    with pytest.raises(RuntimeError, match=r"cannot identify image file .*4\.jpg"):
        peer.write(folder, tmp_path / "ffcv", image_size=24, batch_size=8)
