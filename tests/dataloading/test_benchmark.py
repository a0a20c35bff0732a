"""The loader's benchmark runs every contender and reports what the command prints."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from dataloading.benchmark import benchmark_loader, memory_growth
from dataloading.config import DataConfig
from dataloading.ffcv_peer import ffcv_here
from dataloading.index import Index


def _index(folder: Path) -> Index:
    images = []
    for i in range(16):
        file = io.BytesIO()
        Image.new("RGB", (40 + i, 30), (i, 100, 200)).save(file, "JPEG")
        images.append(file.getvalue())
    (folder / "shard").write_bytes(b"".join(images))
    sizes = np.array([len(image) for image in images])
    return Index.build(
        "ab",
        np.arange(16) % 2,
        [str(i) for i in range(16)],
        containers=[str(folder / "shard")],
        container=np.zeros(16),
        sizes=sizes,
        offsets=np.cumsum(sizes) - sizes,
        heights=np.full(16, 30),
        widths=np.arange(40, 56),
    )


CONFIG = DataConfig(image_size=32, resize_size=32, num_threads=1, prefetch=1)


def test_every_contender_is_measured_against_ours(tmp_path: Path) -> None:
    result = benchmark_loader(CONFIG, _index(tmp_path), name="tiny", rounds=2, seconds=0.05, update_batch=4)
    rows = {row["loader"]: row for row in json.loads(json.dumps(result))["rows"]}
    assert set(rows) == {"earlybird", "dali_reader", "decode_limit", "torchvision"} | (
        {"ffcv"} if ffcv_here() else set()
    )
    assert rows["earlybird"]["ratio_to_earlybird"] == 1
    for row in rows.values():
        assert 0 < row["p20"] <= row["images_per_second"] <= row["p80"]
    assert result["data"]["images"] == 16
    assert result["hardware"]["threads"] == 1


def test_memory_growth_is_sampled_ten_times(tmp_path: Path) -> None:
    sizes = memory_growth(CONFIG, _index(tmp_path), num_batches=100, update_batch=4)
    assert len(sizes) == 10
    assert min(sizes) > 0
