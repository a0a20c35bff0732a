"""Where the loader's processor time goes: each stage run with all before it and nothing behind it."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any

import torch

from dataloading.config import DataConfig
from dataloading.index import PIXELS, Index
from dataloading.loader import num_threads, train_loader
from dataloading.storage import Storage
from dataloading.stream import Stream

_WARM_UP_BATCHES = 4
_FOR_EVER = 1 << 40  # iterations


def profile_loader(
    config: DataConfig,
    index: Index,
    *,
    seconds: float = 2.0,
    update_batch: int = 32,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Processor time per image, over all threads of this process, by stage: plan (which image, which crop), read (its
    bytes), decode (its region; only where the CPU decodes files), and the rest of the way to a batch.

    Each row has the stage's own share and that of the stages up to it; they are measured one after another for
    `seconds` each, so what else the machine does shows as noise. cores_busy: processor time over wall time.
    Worker processes are not seen: for data.loader dali only. Raises ValueError otherwise.
    """
    if config.loader != "dali":
        raise ValueError(f"data.loader is {config.loader}, whose processes cannot be profiled from here; use dali")
    device = device or torch.device("cpu")
    threads = num_threads(config)
    stream = Stream(index, config, 0, update_batch)
    stages = {"plan": _planned(stream), "read": _read(stream, threads)}
    if config.decode != "gpu" and device.type == "cpu" and not (index.flags & PIXELS).any():
        from dataloading.dali_baseline import decoded_regions

        stages["decode"] = decoded_regions(stream, threads)
    stages["rest"] = _whole(config, index, update_batch, device)
    rows: list[dict[str, Any]] = []
    before = 0.0
    for stage, batches in stages.items():
        cpu, wall = _seconds_per_image(batches, seconds)
        rows.append(
            {
                "stage": stage,
                "cpu_microseconds_per_image": 1e6 * (cpu - before),
                "cpu_microseconds_per_image_so_far": 1e6 * cpu,
                "images_per_second_so_far": 1 / wall,
                "cores_busy": cpu / wall,
            }
        )
        before = cpu
    return {"stages": rows, "threads": threads, "seconds": seconds}


def _planned(stream: Stream) -> Iterator[int]:
    return (len(plan) for plan in stream.plans(0, _FOR_EVER))


def _read(stream: Stream, threads: int) -> Generator[int, None, None]:
    with closing(Storage(stream.index, threads)) as storage:
        for plan in stream.plans(0, _FOR_EVER):
            for data in storage.read(plan.ids):
                if not isinstance(data, Exception):
                    data[::4096].sum()  # a mapped page is read when it is touched
            yield len(plan)


def _whole(config: DataConfig, index: Index, update_batch: int, device: torch.device) -> Generator[int, None, None]:
    with closing(train_loader(config, index, seed=0, update_batch=update_batch, device=device)) as loader:
        for batch in loader.batches(0, _FOR_EVER):
            if device.type == "cuda":
                torch.cuda.current_stream(device).synchronize()
            yield len(batch)


def _seconds_per_image(batches: Iterator[int], seconds: float) -> tuple[float, float]:
    """(processor, wall) seconds per image, after a warm-up."""
    for _ in range(_WARM_UP_BATCHES):
        next(batches)
    images, cpu, begun = 0, time.process_time(), time.perf_counter()
    while (wall := time.perf_counter() - begun) < seconds or not images:
        images += next(batches)
    cpu = time.process_time() - cpu
    batches.close()  # type: ignore[attr-defined]
    return cpu / images, wall / images
