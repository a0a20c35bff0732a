"""Images that nothing loads are the same ones for any number of ranks."""

from __future__ import annotations

from contextlib import closing

import torch

from dataloading.config import DataConfig
from dataloading.datasets.open import open_dataset
from dataloading.loader import train_loader

CONFIG = DataConfig(
    source="synthetic", image_size=16, resize_size=16, synthetic_images=60, synthetic_classes=3, heldout=0.0
)


def seen_by(world_size: int) -> dict[int, tuple[int, bytes]]:
    """Label and pixels by id, over three iterations of all ranks."""
    images, seen = open_dataset(CONFIG, 0), dict[int, tuple[int, bytes]]()
    for rank in range(world_size):
        loader = train_loader(
            CONFIG,
            images.train,
            seed=3,
            update_batch=10,
            rank=rank,
            world_size=world_size,
            device=torch.device("cpu"),
        )
        with closing(loader):
            for batch in loader.batches(0, 3):
                rows = zip(batch.ids.tolist(), batch.labels.tolist(), batch.images.numpy(), strict=True)
                seen |= {row: (label, pixels.tobytes()) for row, label, pixels in rows}
    return seen


def test_pixels_follow_from_the_id() -> None:
    alone = seen_by(1)
    assert len({pixels for _, pixels in alone.values()}) == len(alone) == 60
    assert alone == seen_by(2)
