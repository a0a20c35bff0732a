"""The trial between decoders: the faster one wins, whatever it is, and is asked once."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dataloading import decode_trial
from dataloading.assembly import Target
from dataloading.config import DataConfig
from dataloading.dali_loader import DaliReader
from dataloading.datasets.open import open_dataset
from dataloading.loader import train_loader
from dataloading.stream import Stream

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_trial, "_chosen", {})


class Sleeper:
    """A reader whose batches of 10 take `seconds`."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.closed, self.open = seconds, False, 0

    def batches(self, plans: Iterable[Any]) -> Generator[Any, None, None]:
        self.open += 1
        try:
            for _ in plans:
                time.sleep(self.seconds)
                yield range(10)
        finally:
            self.open -= 1

    def close(self) -> None:
        assert not self.open, "closed under a generator that runs"
        self.closed = True


@pytest.mark.parametrize("gpu_is_faster", [True, False])
def test_the_faster_decoder_wins_and_is_asked_once(gpu_is_faster: bool) -> None:
    readers: list[Sleeper] = []

    def reader(on_gpu: bool) -> Any:
        readers.append(Sleeper(0.001 if on_gpu == gpu_is_faster else 0.05))
        return readers[-1]

    plans: Any = [SimpleNamespace()] * 2  # fewer than the trial takes
    choice, reason = decode_trial.faster_on_gpu(reader, plans, CPU, seconds=0.2)
    assert choice == gpu_is_faster
    assert "images/s on the GPU" in reason
    assert len(readers) == 2
    assert all(r.closed for r in readers)
    assert decode_trial.faster_on_gpu(reader, plans, CPU, seconds=0.2) == (choice, reason)
    assert len(readers) == 2


@pytest.mark.parametrize("built", [False, True])
def test_a_gpu_that_cannot_decode_leaves_it_to_the_cpu(built: bool, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Sleeper):
        def batches(self, plans: Iterable[Any]) -> Generator[Any, None, None]:
            raise RuntimeError("no nvJPEG")

    readers: list[Sleeper] = []

    def reader(on_gpu: bool) -> Any:
        if on_gpu and not built:
            raise RuntimeError("no nvJPEG")
        readers.append(Broken(0) if on_gpu else Sleeper(0.001))
        return readers[-1]

    plans: Any = [SimpleNamespace()] * 2
    assert decode_trial.faster_on_gpu(reader, plans, CPU, seconds=0.1) == (
        False,
        "a trial on the GPU failed on 1 of the ranks",
    )
    assert all(r.closed for r in readers)
    assert "no nvJPEG" in caplog.text


def test_one_rank_whose_gpu_cannot_decode_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_reduce(told: torch.Tensor) -> None:
        told += torch.tensor([1.0, 0.0, 1.0])  # the other rank's

    def reader(on_gpu: bool) -> Any:
        return Sleeper(0.001 if on_gpu else 0.05)

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    plans: Any = [SimpleNamespace()] * 2
    choice, _ = decode_trial.faster_on_gpu(reader, plans, CPU, seconds=0.1)
    assert not choice


def _folder(root: Path) -> DataConfig:
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)
    for i in range(16):
        path = root / ("val" if i > 11 else "train") / f"class{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(path)
    return DataConfig(path=str(root), image_size=32, resize_size=36, heldout=0)


def test_real_readers_can_be_tried(tmp_path: Path) -> None:
    config = _folder(tmp_path / "set")
    index = open_dataset(config, 0).train
    plans = list(Stream(index, config, 0, 2).plans(0, 3))

    def reader(whole: bool) -> DaliReader:
        return DaliReader(Target.of(index, config, CPU), 1, gpu_graph_on_cpu=whole)

    _, reason = decode_trial.faster_on_gpu(reader, plans, CPU, seconds=0.1)
    assert " 0 on" not in reason


def test_a_share_beyond_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"hardware_decoder_load is 1\.5; it is a share, 0 to 1"):
        DataConfig(hardware_decoder_load=1.5)


def test_a_cpu_needs_no_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_trial, "_rate", None)
    config = _folder(tmp_path / "set")
    loader = train_loader(config, open_dataset(config, 0).train, seed=0, update_batch=2, device=CPU)
    assert isinstance(loader.reader, DaliReader)
    assert not loader.reader.whole_graph
    loader.close()
