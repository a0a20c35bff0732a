"""What a rank takes of its machine; GPUs as torch tells of them, by a torch that pretends to have one."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer.telemetry.machine import follow_machine
from trainer.telemetry.metrics import METRICS, Metrics

GPU = {name for name in METRICS if name.startswith("gpu_")}


def values(metrics: Metrics) -> dict[str, Any]:
    return {name: next(iter(series.values())) for name, series in metrics.read().items() if isinstance(series, dict)}


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """Number 1, half full and half busy."""
    found = {
        "get_device_properties": lambda _: SimpleNamespace(total_memory=80e9),
        "memory_reserved": lambda _: 30_000_000_000,
        "memory_stats": lambda _: {"num_alloc_retries": 2},
        "device_memory_used": lambda _: 40_000_000_000,
        "utilization": lambda _: 50,
    }
    for name, function in found.items():
        monkeypatch.setattr(torch.cuda, name, function)
    return torch.device("cuda", 1)


def test_memory_and_disk(tmp_path: Path) -> None:
    metrics = Metrics()
    follow_machine(metrics, tmp_path, torch.device("cpu"))
    seen = values(metrics)
    assert 1e7 < seen["host_memory_bytes"] < 1e12
    assert 0 < seen["disk_free_bytes"] <= seen["disk_size_bytes"]
    assert not GPU & seen.keys()


def test_a_disk_that_is_gone_is_a_gap_and_no_error(tmp_path: Path) -> None:
    metrics = Metrics()
    follow_machine(metrics, tmp_path / "gone", torch.device("cpu"))
    assert math.isnan(values(metrics)["disk_free_bytes"])


def test_a_gpu(gpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics(rank=1)
    follow_machine(metrics, tmp_path, gpu)
    assert {name: value for name, value in values(metrics).items() if name in GPU} == {
        "gpu_memory_used_bytes": 40e9,
        "gpu_memory_size_bytes": 80e9,
        "gpu_memory_reserved_bytes": 30e9,
        "gpu_utilization_ratio": 0.5,
        "gpu_allocation_retries_total": 2,
    }

    def lost(_: object) -> int:
        raise RuntimeError("GPU is lost")

    monkeypatch.setattr(torch.cuda, "utilization", lost)
    assert math.isnan(values(metrics)["gpu_utilization_ratio"])


def test_a_slice_of_a_gpu_is_told_of_once(
    gpu: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """NVML has no utilisation of a MIG slice: what it has is exported all the same."""

    def unsupported(_: object) -> int:
        raise RuntimeError("Not Supported")

    monkeypatch.setattr(torch.cuda, "utilization", unsupported)
    metrics = Metrics()
    follow_machine(metrics, tmp_path, gpu)
    assert GPU - values(metrics).keys() == {"gpu_utilization_ratio"}
    assert caplog.text.count("gpu_utilization_ratio is not exported: NVML says Not Supported") == 1
