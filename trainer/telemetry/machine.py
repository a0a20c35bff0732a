"""What a rank takes of its machine: memory, disk and, where there is one, its GPU by NVML. Read at every scrape."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from trainer.telemetry.metrics import Metrics

logger = logging.getLogger(__name__)


def follow_machine(metrics: Metrics, run_folder: Path, device: torch.device) -> None:
    """Have `metrics` read this process's memory, the run folder's disk, and the GPU `device` if it is one."""
    process = psutil.Process()
    metrics.compute("host_memory_bytes", lambda: float(process.memory_info().rss))
    metrics.compute("disk_free_bytes", lambda: _or_nan(lambda: shutil.disk_usage(run_folder).free))
    metrics.compute("disk_size_bytes", lambda: _or_nan(lambda: shutil.disk_usage(run_folder).total))
    if device.type == "cuda":
        _follow_gpu(metrics, device)


def _follow_gpu(metrics: Metrics, device: torch.device) -> None:
    size = torch.cuda.get_device_properties(device).total_memory
    metrics.set("gpu_memory_size_bytes", size)
    metrics.compute("gpu_memory_reserved_bytes", lambda: float(torch.cuda.memory_reserved(device)))
    metrics.compute(
        "gpu_allocation_retries_total", lambda: float(torch.cuda.memory_stats(device).get("num_alloc_retries", 0))
    )
    by_nvml: dict[str, Callable[[], float]] = {
        "gpu_memory_used_bytes": lambda: torch.cuda.device_memory_used(device),
        "gpu_utilization_ratio": lambda: torch.cuda.utilization(device) / 100,
    }
    for name, read in by_nvml.items():
        try:
            read()
        except Exception as error:  # NVML's own classes: no driver library, or a slice of a GPU that is not told of
            logger.warning("%s is not exported: NVML says %s", name, error)
        else:
            metrics.compute(name, lambda read=read: _or_nan(read))  # type: ignore[misc]


def _or_nan(read: Callable[[], float]) -> float:
    """A scrape shows a gap where a reading fails, and all the rest."""
    try:
        return float(read())
    except Exception:
        return math.nan
