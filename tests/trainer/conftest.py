"""The command line called in this process, a net and a set so small that a run takes a fraction of a second."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from trainer.__main__ import main

CLASSES = ("ant", "bee", "cat")
# Two exits, 16-pixel images, 5 thousand weights; 8 images an update.
TINY = {
    "data.image_size": 16,
    "data.resize_size": 16,
    "data.num_threads": 1,
    "model.num_exits": 2,
    "model.first_channels": 4,
    "model.growth": 2,
    "model.growth_factors": "1,1",
    "model.bottleneck_factors": "1,1",
    "model.classifier_channels": 8,
    "weight_net.width": 8,
    "optim.update_batch": 8,
    "run.epochs": 2,
    "run.evaluate_every": 100,
    "run.evaluation_batch": 8,
    "checkpoint.every": "1000epochs",
}
SYNTHETIC = {"data.source": "synthetic", "data.synthetic_images": 80, "data.synthetic_classes": 4}


@dataclass(frozen=True)
class Outcome:
    """Exit code and what was printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class Earlybird:
    """Calls commands as `earlybird ...` would; `tiny` are the settings of its training runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> Outcome:
        self._monkeypatch.setattr(sys, "argv", ["earlybird", *map(str, arguments)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        printed = self._capsys.readouterr()
        return Outcome(int(ended.value.code or 0), printed.out, printed.err)

    def train(self, run: Path, *settings: str, data: Path | None = None, more: Sequence[object] = ()) -> Outcome:
        """A tiny training run: of the images in `data`, else of random pixels."""
        return self(*self.arguments(run, *settings, data=data), *more)

    @staticmethod
    def arguments(run: Path, *settings: str, data: Path | None = None) -> list[str]:
        """Of a training run."""
        source = {"data.source": "auto", "data.path": data} if data else SYNTHETIC
        tiny = [f"{name}={value}" for name, value in (TINY | source).items()]
        values = [word for setting in (*tiny, *settings) for word in ("--set", setting)]
        return ["train", "demo", "--run", str(run), "--device", "cpu", "--json", *values]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of indexes that starts empty."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def earlybird(cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Earlybird]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.delenv("EARLYBIRD_TRACEBACK", raising=False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield Earlybird(monkeypatch, capsys)
    torch.set_num_threads(threads)


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def write_images() -> Callable[..., Path]:
    """(root, images a class that train, images a class of the validation split) -> root, an image folder."""
    return _write_images


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """72 training images (the demo holds 7 of them out), 21 for validation."""
    return _write_images(tmp_path_factory.mktemp("data") / "images")


def _write_images(root: Path, num_train: int = 24, num_val: int = 7) -> Path:
    random = np.random.default_rng(list(root.name.encode()))  # another name, other images
    for split, number in (("train", num_train), ("val", num_val)):
        for label, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for image in range(number):
                pixels = random.integers(0, 100, (20, 24, 3), dtype=np.uint8)
                pixels[..., label] += 100
                Image.fromarray(pixels).save(folder / f"{image:03}.jpg")
    return root
