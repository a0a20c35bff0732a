"""A run on its way to a cluster: what is checked of it here, and the job that it becomes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataloading.datasets.open import open_dataset
from dataloading.stream import Stream
from deploy.job import Job
from deploy.site import Site
from trainer.config import Config
from trainer.run.checkpoint import step_folders
from trainer.run.folder import RunFolder
from trainer.run.interval import Interval
from trainer.run.origin import begun_from, check_images, with_seed


def admit(config: Config, world_size: int, run_folders: Mapping[int, Path], *, data_elsewhere: bool = False) -> str:
    """What the data is; ValueError where training `config` over so many ranks would be refused.

    config          {seed} in its origin.run is the seed of each run
    run_folders     by seed; what they hold must be the same run
    data_elsewhere  the data cannot be read from here: it goes unchecked, and so does an origin that is not here
    """
    config.check_ranks(world_size)
    begun = {
        folder: settled(dataclasses.replace(config, seed=seed), folder, elsewhere=data_elsewhere)
        for seed, folder in run_folders.items()
    }
    if data_elsewhere:
        return f"{config.data.path}, unchecked"
    images = open_dataset(config.data, config.seed)
    for folder, own in begun.items():
        if own.origin.run and not has_begun(folder):
            check_images(own.origin, open_dataset(own.data, own.seed))
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


def settled(
    config: Config, folder: Path, *, elsewhere: bool = False, remedy: str = "give --run another folder"
) -> Config:
    """`config` as its run in the folder keeps it, the origin filled in; ValueError where another run is there.

    elsewhere  an origin that is not here lies where the nodes see it, and is left as it is
    remedy     what the command that asks can do about another run
    """
    config = with_seed(config)
    if not elsewhere or has_begun(folder) or not config.origin.run or Path(config.origin.run).exists():
        config = begun_from(config, RunFolder(folder))
    RunFolder(folder).check(config, remedy=remedy)
    return config


def has_begun(folder: Path) -> bool:
    """Whether the folder's run has come to a checkpoint, from which it goes on."""
    return bool(step_folders(folder / "checkpoints"))


def at_site(settings: Sequence[str], site: Site) -> list[str]:
    """The settings of a run there: with the site's port for metrics, where they name none."""
    port = site.ports.telemetry
    named = any(setting.partition("=")[0].strip() == "telemetry.port" for setting in settings)
    return [*settings, *([f"telemetry.port={port}"] if port and not named else [])]


def job_of(
    recipe: str,
    settings: Sequence[str],
    config: Config,
    folder: Path,
    *,
    data: str = "",
    data_elsewhere: bool = False,
    max_steps: int = 0,
    device: str = "auto",
    **asked: Any,
) -> Job:
    """`train` of a recipe with these settings, which `config` was resolved from, as a job.

    data   as `admit` takes it: what lies here goes by its absolute path; so does the config's origin
    asked  of the cluster: fields of Job, its name among them
    """
    arguments = ["train", recipe, *(word for setting in settings for word in ("--set", setting))]
    arguments += ["--max-steps", str(max_steps)] if max_steps else []
    arguments += ["--device", device] if device != "auto" else []
    origin = (config if asked.get("seeds") else with_seed(config)).origin.run
    return Job(
        arguments=tuple(arguments),
        run_folder=str(folder.absolute()),
        data=str(Path(data).expanduser().absolute()) if data and not data_elsewhere else data,
        origin=str(Path(origin).absolute()) if origin else "",
        grace_seconds=math.ceil(Interval.time(config.run.grace, "run.grace")),
        **asked,
    )
