"""The benchmark of a training step has every side, in figures that fit each other."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from trainer.benchmark import step
from trainer.benchmark.figure import bars
from trainer.benchmark.iteration import fresh_state, iterate, random_batch
from trainer.benchmark.peak_memory import peak_memory_mb
from trainer.benchmark.step import INTERVALS, WAYS, benchmark_step
from trainer.config import Config
from trainer.learning.meta_gradient import MetaConfig
from trainer.learning.optim import build_sgd
from trainer.models.config import ModelConfig
from trainer.recipes.demo import demo
from trainer.reporting.plots import write_png

CPU = torch.device("cpu")


def tiny() -> Config:
    model = ModelConfig(num_exits=2, num_classes=10, first_channels=8, growth=4, classifier_channels=16)
    return dataclasses.replace(demo(), model=model)


def test_every_side_is_there_and_the_ratios_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(step, "peak_memory_mb", lambda *_: None)  # has its own test
    result = benchmark_step(tiny(), num_images=8, rounds=1, with_compile=False)
    rows = {(row["name"], row["meta"], row["interval"]): row for row in result["rows"]}
    assert len(rows) == len(result["rows"])
    assert {key for key in rows if key[1]} == {("weighted", way, i) for way in WAYS for i in INTERVALS}
    assert ("baseline", None, None) in rows
    assert result["left_out"]["compile"]
    assert ("bf16" in result["slow"]) is not torch.cpu._is_amx_tile_supported()
    # One round: ratios are those of the very times that the rates were taken from.
    for (name, meta, interval), row in rows.items():
        # On a CPU a recipe's own levers are the fused SGD alone.
        plain = rows["fused_sgd" if name == "weighted" else "baseline", None, None]
        assert rows[row["over"], None, None] is plain
        assert row["ratio_to_plain"] == pytest.approx(plain["images_per_second"] / row["images_per_second"])
        assert row["computed"] is (interval in (10, 100))
        if meta is not None:
            alone, once = 1 / rows["weighted", None, None]["images_per_second"], rows["weighted", meta, 1]
            expected = (1 / once["images_per_second"] - alone) / interval + alone
            assert 1 / row["images_per_second"] == pytest.approx(expected)
    names = [f"{key}" for key in rows]
    write_png(bars(result["rows"], names, "sides"), tmp_path / "sides.png")
    assert (tmp_path / "sides.png").read_bytes().startswith(b"\x89PNG")


def test_every_side_of_a_gpu_is_one_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No side asks for what its own settings refuse: the optimizer of each is built, with the rate on the device."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    sides, left_out, slow = step._sides(tiny(), 8, True, torch.device("cuda"))
    assert {side.name for side in sides} >= {"baseline", "channels_last", "bf16", "compile", "cuda_graphs", "all"}
    assert set(left_out) == {"fused_sgd"}
    assert not slow
    for side in sides:
        build_sgd([torch.nn.Parameter(torch.zeros(1))], side.config.optim, side.config.precision.cuda_graphs)
    together = next(side.config.precision for side in sides if side.name == "all")
    assert (together.dtype, together.channels_last, together.compile, together.cuda_graphs) == (
        "bf16",
        "on",
        True,
        True,
    )


@pytest.mark.parametrize(("schedule", "updates"), [("paper", 2), ("online", 1)])
def test_updates_of_the_weight_net_are_counted_right(schedule: str, updates: int) -> None:
    config = dataclasses.replace(tiny(), meta=MetaConfig(schedule=schedule))  # type: ignore[arg-type]
    state = fresh_state(config, 10, CPU)
    iterate(state, random_batch(config, state, 8, 10))
    assert state.weight_net_optimizer is not None
    steps = {float(slot["step"]) for slot in state.weight_net_optimizer.state.values()}
    assert steps == {updates}


def test_peak_memory_sees_what_a_graph_holds() -> None:
    """Double backward keeps several forwards' worth; the activations of 32 images outweigh the state."""
    exact, double = (
        peak_memory_mb(dataclasses.replace(tiny(), meta=MetaConfig(form=form)), 32, 10, CPU)  # type: ignore[arg-type]
        for form in ("exact", "double_backward")
    )
    assert exact is not None
    assert double is not None
    assert 1 < exact < double


def test_sides_that_do_not_fit_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(step, "peak_memory_mb", lambda *_: None)
    monkeypatch.setattr(step, "ready", full)
    with pytest.raises(ValueError, match="--batch is 8, with which baseline does not fit"):
        benchmark_step(tiny(), num_images=8, with_compile=False)


@pytest.mark.parametrize("num_images", [2, 7])
def test_a_batch_without_two_halves_is_refused(num_images: int) -> None:
    with pytest.raises(ValueError, match="--batch"):
        benchmark_step(tiny(), num_images=num_images)
