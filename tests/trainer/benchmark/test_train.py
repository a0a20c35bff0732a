"""The end-to-end benchmark runs both sides on the same images."""

from __future__ import annotations

import dataclasses

import pytest

from dataloading.datasets.open import open_dataset
from trainer.benchmark import train
from trainer.benchmark.train import benchmark_train
from trainer.config import Config
from trainer.learning.meta_gradient import MetaConfig
from trainer.learning.precision import PrecisionConfig
from trainer.models.config import ModelConfig
from trainer.recipes.demo import demo


def tiny() -> Config:
    model = ModelConfig(num_exits=2, num_classes=0, first_channels=8, growth=4, classifier_channels=16)
    config = dataclasses.replace(demo(), model=model, meta=MetaConfig(interval=2))
    return dataclasses.replace(config, precision=PrecisionConfig(dtype="float32"))


def test_both_sides_train_on_the_same_images(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(train, "peak_memory_mb", lambda *_: 2.0)  # has its own test
    config = tiny()
    images = open_dataset(config.data, config.seed)
    result = benchmark_train(config, images, num_images=8, rounds=1, seconds=0.01)
    usual, ours, step = result["rows"]
    assert (usual["name"], usual["loader"], usual["meta"]) == ("usual", "torchvision", "double_backward")
    assert (ours["name"], ours["meta"], ours["interval"]) == ("earlybird", "exact", 2)
    assert ours["ratio_to_usual"] == pytest.approx(ours["images_per_second"] / usual["images_per_second"])
    assert ours["ratio_to_step"] == pytest.approx(ours["images_per_second"] / step["images_per_second"])
    assert (step["loader"], step["meta"]) == (None, "exact")
    assert ours["peak_memory_mb"] == 2.0
    assert 0 <= ours["data_wait_ratio"] < 1


def test_accumulation_is_refused() -> None:
    config = tiny()
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, accumulation=2))
    with pytest.raises(ValueError, match=r"optim\.accumulation is 2"):
        benchmark_train(config, None, num_images=8)  # type: ignore[arg-type]
