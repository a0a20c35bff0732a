"""What is checked of a run before it is submitted: what training itself would refuse is found out here."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from dataloading.datasets.open import open_dataset
from dataloading.stream import Stream
from trainer.config import Config
from trainer.run.folder import RunFolder


def admit(config: Config, world_size: int, run_folders: dict[int, Path], *, data_elsewhere: bool = False) -> str:
    """What the data is; ValueError where training `config` over so many ranks would be refused.

    run_folders     by seed; what they hold must be the same run
    data_elsewhere  the data cannot be read from here: it goes unchecked
    """
    for seed, folder in run_folders.items():
        RunFolder(folder).check(dataclasses.replace(config, seed=seed))
    if data_elsewhere:
        return f"{config.data.path}, unchecked"
    images = open_dataset(config.data, config.seed)
    optim = config.optim
    Stream(
        images.train,
        config.data,
        config.seed,
        optim.update_batch,
        0,
        world_size,
        optim.micro_batches(world_size),
    )
    return f"{images.name}, {len(images.train):,} images of {len(images.classes)} classes"
