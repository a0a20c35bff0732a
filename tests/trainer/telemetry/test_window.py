"""What a log step reads is what the iterations since the last one summed up."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from trainer.learning.collectives import collective_spans
from trainer.learning.iteration import HalfStep
from trainer.telemetry.window import Window


def step(losses: Tensor, hits: Tensor, weights: Tensor | None = None, meta_loss: float | None = None) -> HalfStep:
    """What the steps over a half of losses, hits [n, K] hand on."""
    found = {"loss": losses.sum(dim=0), "top1": hits.sum(dim=0), "losses": losses}
    looked_ahead = {} if meta_loss is None else {"meta_loss": torch.tensor(meta_loss)}
    return HalfStep(found if weights is None else found | {"weights": weights}, looked_ahead)


def test_means_over_everything_since_the_last_reading() -> None:
    window = Window(2, torch.device("cpu"))
    losses, hits = torch.rand(12, 2), torch.rand(12, 2) > 0.5
    for part in (slice(0, 4), slice(4, 12)):  # halves of different sizes: means of means would be wrong
        window.add(step(losses[part], hits[part]), part.stop - part.start)
    reading = window.read()
    assert reading.loss == pytest.approx(losses.mean(dim=0).tolist(), rel=1e-6)
    assert reading.top1 == pytest.approx(hits.float().mean(dim=0).tolist(), rel=1e-6)
    assert reading.images == 12
    assert reading.meta_loss is None
    assert reading.num_meta_steps == 0
    assert (reading.weight_quantiles, reading.weight_easy, reading.weight_hard) == (None, None, None)

    window.add(step(losses[:4], hits[:4]), 4)
    again = window.read()
    assert again.images == 4
    assert again.loss == pytest.approx(losses[:4].mean(dim=0).tolist(), rel=1e-6)


def test_meta_loss_is_the_mean_over_meta_steps() -> None:
    window = Window(1, torch.device("cpu"))
    ones = torch.ones(2, 1)
    window.add(step(ones, ones), 2)
    for loss in (1.0, 2.0, 6.0):
        with window.meta_clock():
            time.sleep(0.002)
        window.add(step(ones, ones, meta_loss=loss), 2)
    reading = window.read()
    assert reading.meta_loss == pytest.approx(3.0)
    assert reading.num_meta_steps == 3
    assert reading.meta_step_seconds is not None
    assert 0.006 <= reading.meta_step_seconds <= reading.seconds
    window.add(step(ones, ones, meta_loss=1.0), 2)
    assert window.read().meta_step_seconds is None, "a meta step that no clock saw, as in a CUDA graph"
    window.add(step(ones, ones), 2)
    assert window.read().meta_step_seconds == 0.0


def test_shape_of_the_weights() -> None:
    """Quantiles of each exit's weights, and their means over that exit's easier and harder samples."""
    losses = torch.stack([torch.arange(10.0), 9 - torch.arange(10.0)], dim=1)
    weights = torch.stack([torch.linspace(0.5, 1.4, 10), torch.linspace(0.5, 1.4, 10)], dim=1)
    window = Window(2, torch.device("cpu"))
    window.add(step(losses, torch.ones(10, 2), weights), 10)
    reading = window.read()
    assert reading.weight_quantiles is not None
    for k in (0, 1):
        expected = weights[:, k].double().quantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()
        assert reading.weight_quantiles[k] == pytest.approx(expected, rel=1e-6)
    assert reading.weight_easy == pytest.approx([0.7, 1.2], rel=1e-6)  # exit 1: low weight where the loss is low
    assert reading.weight_hard == pytest.approx([1.2, 0.7], rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_one_bad_loss_shows(bad: float) -> None:
    window = Window(2, torch.device("cpu"))
    losses = torch.ones(4, 2)
    window.add(step(losses, losses), 4)
    assert window.read().finite
    window.add(step(losses, losses), 4)
    window.add(step(losses.index_fill(0, torch.tensor([2]), bad), losses), 4)
    assert not window.read().finite


def test_waiting_is_counted_and_pauses_are_not() -> None:
    def batches() -> Iterator[int]:
        for batch in range(3):
            time.sleep(0.02)
            yield batch

    window = Window(1, torch.device("cpu"))
    seen = []
    for batch in window.fetched(batches()):
        seen.append(batch)
        window.add(step(torch.ones(2, 1), torch.ones(2, 1)), 2)
        began = time.perf_counter()
        with window.paused():
            time.sleep(0.05)
        if batch == 0:
            paused = time.perf_counter() - began
            total = time.perf_counter()
            first = window.read()
    assert seen == [0, 1, 2]
    assert (first.num_iterations, first.images) == (1, 2)
    assert 0.02 <= first.data_wait_seconds <= first.seconds
    assert first.images_per_second == pytest.approx(2 / first.seconds)
    second = window.read()
    assert second.num_iterations == 2
    assert second.data_wait_seconds >= 0.04
    assert second.seconds <= time.perf_counter() - total - 2 * 0.05
    assert paused >= 0.05


def test_every_iteration_is_timed_with_its_wait_and_without_pauses() -> None:
    window, slept = Window(1, torch.device("cpu")), (0.01, 0.06, 0.01)

    def batches() -> Iterator[float]:
        for seconds in slept:
            time.sleep(0.02)
            yield seconds

    readings = []
    for seconds in window.fetched(batches()):
        time.sleep(seconds)
        window.add(step(torch.ones(3, 1), torch.ones(3, 1)), 3)
        with collective_spans.span(window.device):
            time.sleep(0.01)
        if seconds != slept[1]:
            readings.append(window.read().own)
        with window.paused():
            time.sleep(0.1)
            with collective_spans.span(window.device):  # of an evaluation
                time.sleep(0.1)
    took = [reading.step_seconds for reading in readings]
    # Of the iterations before and in the second reading; the last batch's end is no iteration.
    assert [len(times) for times in took] == [1, 2]
    for seconds, spent in zip(slept, took[0] + took[1], strict=True):
        assert seconds + 0.03 <= spent
    assert took[1][0] - took[1][1] == pytest.approx(0.05, abs=0.04)
    assert [reading.images for reading in readings] == [3, 6]
    assert readings[0].collective_seconds >= 0.01
    assert readings[1].collective_seconds < 0.1, "none of an evaluation's"
    assert "own" not in window_row(window)


def window_row(window: Window) -> dict[str, object]:
    window.add(step(torch.ones(1, 1), torch.ones(1, 1)), 1)
    return window.read().row()
