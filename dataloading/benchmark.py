"""How fast the loader is, beside what else one could run, on the same images, in one run."""

from __future__ import annotations

import dataclasses
import gc
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch

from dataloading.config import DataConfig
from dataloading.ffcv_peer import FfcvPeer, ffcv_here
from dataloading.index import PIXELS, Index
from dataloading.loader import num_threads, train_loader
from dataloading.storage import Storage
from dataloading.stream import Stream

_WARM_UP_BATCHES = 4
_FOR_EVER = 1 << 40  # iterations

Contender = Callable[[], Iterator[int]]  # starts a loader; yields the number of images of every batch


def benchmark_loader(
    config: DataConfig,
    index: Index,
    *,
    name: str = "",
    rounds: int = 5,
    seconds: float = 2.0,
    update_batch: int = 32,
    device: torch.device | None = None,
    ffcv_python: str = "",
) -> dict[str, Any]:
    """Images per second of the training loader (`earlybird`), of DALI's own file reader (`dali_reader`), of torch's
    DataLoader with Pillow (`torchvision`), of the decoder alone (`decode_limit`) and of FFCV (`ffcv`), which needs
    `ffcv_python`, an interpreter that has it; "" means this one, and no such row where this one has no ffcv.

    Each round runs every one for `seconds` after a warm-up, one after the other, so that what else the machine does
    meets all. A row has the median over rounds, the 20th and 80th percentile, and the median ratio of the same round.
    Sets of plain pixels have no decoder to compare with. FFCV reads the same images in its own format (JPEG of quality
    90, original size) and times its own rounds; `dali_reader`, `decode_limit` and `ffcv` stay in host memory.
    Raises ValueError where `ffcv_python` has no ffcv, or the set is of plain pixels.
    """
    device = device or torch.device("cpu")
    threads = num_threads(config)
    rates: dict[str, list[float]] = {}
    with ExitStack() as stack:
        peer = _ffcv(ffcv_python, index, threads)
        if peer:
            stack.enter_context(peer)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="earlybird-benchmark-")))
        contenders = _contenders(config, index, update_batch, device, folder / "images")
        sides = {loader: partial(_images_per_second, start, seconds) for loader, start in contenders.items()}
        if peer:
            peer.write(folder / "images", folder / "ffcv", image_size=config.image_size, batch_size=2 * update_batch)
            sides["ffcv"] = partial(peer.images_per_second, seconds, _WARM_UP_BATCHES)
        for _ in range(rounds):
            for loader, images_per_second in sides.items():
                rates.setdefault(loader, []).append(images_per_second())
    ours = np.array(rates["earlybird"])
    return {
        "rows": [
            {
                "loader": loader,
                "images_per_second": float(np.median(values)),
                "p20": float(np.percentile(values, 20)),
                "p80": float(np.percentile(values, 80)),
                "images_per_second_per_core": float(np.median(values)) / threads,
                "ratio_to_earlybird": float(np.median(np.array(values) / ours)),
            }
            for loader, values in rates.items()
        ],
        "data": {
            "name": name or config.path,
            "images": len(index),
            "mean_pixels": float(np.mean(index.heights.astype(np.float64) * index.widths)),
            "mean_bytes": float(np.mean(index.sizes)),
            "image_size": config.image_size,
            "loaded_batch": 2 * update_batch,
            **({"ffcv_mean_bytes": peer.mean_bytes} if peer else {}),
        },
        "rounds": rounds,
        "seconds": seconds,
        "hardware": {"cpu": _cpu(), "cores": os.cpu_count(), "threads": threads, "device": _device(device)},
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in ("torch", "nvidia-dali-cuda120", "pillow", "numpy")},
            **({"ffcv": peer.versions} if peer else {}),
        },
    }


def memory_growth(config: DataConfig, index: Index, *, num_batches: int = 10_000, update_batch: int = 32) -> list[int]:
    """Resident bytes of this process after each tenth of `num_batches` training batches: level, where nothing is kept.

    Pages of a memory-mapped set count too, once each, as they are touched.
    """
    process, sizes = psutil.Process(), []
    loader = train_loader(config, index, seed=0, update_batch=update_batch, device=torch.device("cpu"))
    with closing(loader):
        for done, _ in enumerate(loader.batches(0, num_batches + 1)):
            if done and done % max(1, num_batches // 10) == 0:
                gc.collect()
                sizes.append(process.memory_info().rss)
    return sizes


def _contenders(
    config: DataConfig, index: Index, update_batch: int, device: torch.device, folder: Path
) -> dict[str, Contender]:
    def loader(kind: Any) -> Contender:
        def start() -> Iterator[int]:
            settings = dataclasses.replace(config, loader=kind)
            loader = train_loader(settings, index, seed=0, update_batch=update_batch, device=device)
            with closing(loader):
                for batch in loader.batches(0, _FOR_EVER):
                    if device.type == "cuda":
                        torch.cuda.current_stream(device).synchronize()
                    yield len(batch)

        return start

    contenders = {"earlybird": loader("dali")}
    if not (index.flags & PIXELS).any():
        from dataloading.dali_baseline import decoded_regions, file_reader_batches

        _unpack(index, folder)
        threads = num_threads(config)
        contenders["dali_reader"] = lambda: file_reader_batches(config, str(folder), 2 * update_batch, threads)
        contenders["decode_limit"] = lambda: decoded_regions(Stream(index, config, 0, update_batch), threads)
    contenders["torchvision"] = loader("torchvision")
    return contenders


def _ffcv(python: str, index: Index, threads: int) -> FfcvPeer | None:
    if not (index.flags & PIXELS).any():
        python = python or ffcv_here()
    elif python:
        raise ValueError(
            f"--ffcv-python is {python}, but the set holds plain pixels: no decoder to compare with; leave it away "
            "(EARLYBIRD_FFCV_PYTHON too)"
        )
    return FfcvPeer(python, threads) if python else None


def _images_per_second(start: Contender, seconds: float) -> float:
    """Over whole batches, with as many made ahead at the end as at the beginning."""
    batches = start()
    for _ in range(_WARM_UP_BATCHES):
        next(batches)
    images, begun = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - begun) < seconds:
        images += next(batches)
    batches.close()  # type: ignore[attr-defined]
    return images / elapsed


def _unpack(index: Index, folder: Path) -> None:
    """The index as a folder of files, one folder a class: what DALI's file reader reads."""
    storage = Storage(index)
    for row in range(len(index)):
        home = folder / f"{index.labels[row]:05d}"
        home.mkdir(exist_ok=True, parents=True)
        (home / f"{row}.jpg").write_bytes(storage.read_one(row).tobytes())
    storage.close()


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
