"""The hand-over to a GPU, whose calls are recorded here on the CPU."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Generator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dataloading.assembly import Assembly, Target, handed_over
from dataloading.config import DataConfig
from dataloading.index import PIXELS, Index
from dataloading.stream import evaluation_plans

CONFIG = DataConfig(image_size=8, resize_size=8, prefetch=2)


def _index(num_images: int) -> Index:
    side = np.full(num_images, 8)
    names = [str(row) for row in range(num_images)]
    flags = np.full(num_images, PIXELS)
    return Index.build(
        "ab", np.arange(num_images) % 2, names, sizes=192 + 0 * side, heights=side, widths=side, flags=flags
    )


def test_the_loaders_thread_works_on_the_ranks_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything else: the first call on another GPU makes a context there."""
    taken: list[tuple[torch.device, str]] = []
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: taken.append((device, threading.current_thread().name))
    )
    target = dataclasses.replace(Target.of(_index(4), CONFIG, torch.device("cpu")), device=torch.device("cuda", 3))

    def sent() -> Generator[Assembly, None, None]:
        assert len(taken) == 1
        yield from ()

    assert not list(handed_over(dataclasses.replace(target, stream=object()), sent(), "worker"))  # type: ignore[arg-type]
    assert taken == [(torch.device("cuda", 3), "worker")]
    assert not list(handed_over(target, (_ for _ in ()), "worker")), "a CPU has nothing to take"
    assert len(taken) == 1


def test_a_batch_goes_to_a_gpu_in_one_stream_out_of_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []
    calls: list[Any] = []
    here = SimpleNamespace(wait_event=lambda event: calls.append(event))
    there = SimpleNamespace(record_event=lambda: "sent")

    def pin_memory(tensor: Tensor) -> Tensor:
        pinned.append(tensor)
        return tensor

    def record_stream(tensor: Tensor, stream: Any) -> None:
        assert stream is here
        calls.append(tensor)

    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(Tensor, "record_stream", record_stream)
    monkeypatch.setattr(Target, "on_stream", lambda self: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: here)
    index = _index(5)
    (plan,) = evaluation_plans(index, CONFIG, 8)
    target = dataclasses.replace(Target.of(index, CONFIG, torch.device("cpu")), stream=there)  # type: ignore[arg-type]
    assembly = Assembly(target, plan)
    assembly.on_cpu = False
    assembly.send()
    assert len(pinned) == 3, "labels, mask and flips"
    assert not calls, "the step that takes the batch waits, nobody before"
    batch = assembly.batch()
    assert batch.flip is not None
    assert batch.mask is not None
    assert calls[0] == "sent"
    assert {id(tensor) for tensor in calls[1:]} == {id(t) for t in (batch.images, batch.labels, batch.mask, batch.flip)}
    assert batch.labels.tolist() == [row % 2 for row in batch.ids.tolist()]
