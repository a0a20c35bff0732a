"""What the index and the order cost at full size: ImageNet's rows, and a thousand million."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from dataloading.index import Index
from dataloading.order import Order

IMAGENET_ROWS, MANY_ROWS = 1_281_167, 1_000_000_000
_CLASSES = 1000


def measure_scale(loaded_batch: int = 4096, rounds: int = 7) -> dict[str, Any]:
    """Medians over `rounds`: seconds to open an index of ImageNet's size, to order an epoch of it, and to find the rows
    of one batch there and among 1e9 images (no files behind either); bytes on disk and resident."""
    process = psutil.Process()
    with tempfile.TemporaryDirectory(prefix="earlybird-scale-") as folder:
        path = Path(folder) / "index"
        _imagenet_sized().save(path)
        num_bytes = sum(file.stat().st_size for file in path.iterdir())
        opened, ordered, batches = [], [], []
        before = process.memory_info().rss
        for seed in range(rounds):
            opened.append(_seconds(lambda: Index.open(path)))
            order = Order(IMAGENET_ROWS, seed)
            ordered.append(_seconds(lambda order=order: order.rows(0, 1)))
            batches.append(_seconds(lambda order=order: order.rows(5 * loaded_batch, 6 * loaded_batch)))
        grown = process.memory_info().rss - before
    many, start = Order(MANY_ROWS, 0), np.random.default_rng(0).integers(0, MANY_ROWS, rounds)
    before = process.memory_info().rss
    far = [_seconds(lambda at=int(at): many.rows(at, at + loaded_batch)) for at in start]
    return {
        "imagenet": {
            "rows": IMAGENET_ROWS,
            "index_bytes": num_bytes,
            "open_seconds": float(np.median(opened)),
            "epoch_order_seconds": float(np.median(ordered)),
            "batch_seconds": float(np.median(batches)),
            "resident_bytes": grown,
        },
        "many": {
            "rows": MANY_ROWS,
            "stored": many.stored,
            "batch_seconds": float(np.median(far)),
            "worst_batch_seconds": max(far),
            "resident_bytes": process.memory_info().rss - before,
        },
        "loaded_batch": loaded_batch,
    }


def _imagenet_sized() -> Index:
    rows = np.arange(IMAGENET_ROWS)
    return Index.build(
        [f"n{synset:08d}" for synset in range(_CLASSES)],
        rows % _CLASSES,
        [f"n{row % _CLASSES:08d}/n{row % _CLASSES:08d}_{row}.JPEG" for row in rows],
        sizes=np.full(IMAGENET_ROWS, 110_000),
        heights=np.full(IMAGENET_ROWS, 375),
        widths=np.full(IMAGENET_ROWS, 500),
    )


def _seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
