"""A run that begins with another one's net: `train ...-imta-finetune --from RUN` (METHOD: IMTA, phase 2)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from dataloading.datasets.open import ImageSet
from deploy.job import SEED
from trainer.models.imta import ImtaNet
from trainer.run.checkpoint import TENSORS, Checkpoint, load_latest, step_folders
from trainer.run.manifest import read_manifest

if TYPE_CHECKING:
    from trainer.config import Config
    from trainer.run.folder import RunFolder

_ENDED = ("completed", "stopped")
# Model settings that change no parameter and no evaluation of the phase-1 net, and the number that follows the data.
_FREE = ("imta", "batch_norm", "num_classes")


@dataclass(frozen=True)
class OriginConfig:
    """Group `origin`, of the recipes ...-imta-finetune.

    run      folder of the finished run whose net this one begins with (`--from`)
    weights  sha-256 of the checkpoint that was taken there; filled in when the run begins
    """

    run: str = ""
    weights: str = ""


def with_seed(config: Config) -> Config:
    """`config` with the seed in place of {seed} in origin.run: one --from for all runs of an array."""
    run = config.origin.run.replace(SEED, str(config.seed))
    return dataclasses.replace(config, origin=dataclasses.replace(config.origin, run=run))


def begun_from(config: Config, folder: RunFolder) -> Config:
    """`config` with its origin filled in: by the folder's own run where that goes on, else from config.origin.run.

    ValueError where there is none, or the run there has not ended, has no whole checkpoint, or has another net.
    """
    if config.model.imta != "finetune":
        return config
    if folder.config_file.is_file() and step_folders(folder.path / "checkpoints"):
        theirs = folder.read_config().origin
        if config.origin.run in ("", theirs.run):
            return dataclasses.replace(config, origin=theirs)
    if not config.origin.run:
        raise ValueError(f"{config.recipe} begins with a trained net; give --from RUN, a run of ...-imta-pretrain")
    source = Path(config.origin.run)
    _check_net(config, source)
    found = _newest(source)
    if "imported" not in found.meta:
        _check_ended(source)
    weights = _digest(found)
    if config.origin.weights not in ("", weights):
        raise ValueError(f"--from {source} has other weights than origin.weights says: {weights[:12]}; leave that out")
    return dataclasses.replace(config, origin=OriginConfig(str(source.absolute()), weights))


def begin(net: ImtaNet, origin: OriginConfig, images: ImageSet) -> None:
    """Give the net's frozen part the weights of its origin; ValueError where that saw other images or trained on since.

    What held-out images decide would flatter a net that has trained on them.
    """
    found = _newest(Path(origin.run))
    if _digest(found) != origin.weights:
        raise ValueError(f"--from {origin.run} has trained on since this run took its weights; give another --run")
    _check_images(found, origin.run, images)
    state = net.state_dict()
    for name in state:
        source = net.source_name(name)
        if source is not None:
            state[name] = _fitting(found.tensors, f"model.{source}", state[name], origin.run)
    net.load_state_dict(state)


def check_images(origin: OriginConfig, images: ImageSet) -> None:
    """ValueError where the net that a run is to begin with saw other images: `begin` would refuse it."""
    _check_images(_newest(Path(origin.run)), origin.run, images)


def _check_images(found: Checkpoint, run: str, images: ImageSet) -> None:
    theirs = found.meta.get("data_fingerprint")
    if theirs is not None and theirs != images.fingerprint:  # an imported net does not say what trained it
        raise ValueError(
            f"--from {run} was trained on other images (fingerprint {str(theirs)[:12]}, now "
            f"{images.fingerprint[:12]}): those held out here may have trained it; give its --data, data.* and --seed"
        )


def _fitting(tensors: dict[str, Tensor], name: str, own: Tensor, run: str) -> Tensor:
    if name not in tensors:
        raise ValueError(f"--from {run} has no tensor {name}; give a run of the ...-imta-pretrain recipe")
    if tensors[name].shape != own.shape:
        shapes = f"{tuple(tensors[name].shape)} there and {tuple(own.shape)} here"
        raise ValueError(f"--from {run} holds another net: {name} is {shapes}; give a run of the same net and data")
    return tensors[name]


def _check_net(config: Config, source: Path) -> None:
    from trainer.run.folder import RunFolder  # configurations are made of this module's own

    try:
        theirs, ours = RunFolder(source).read_config().model, config.model
    except ValueError as error:
        raise ValueError(f"--from {error}") from None
    if theirs.imta == "finetune":
        raise ValueError(f"--from {source} has collaborating exits already; give the ...-imta-pretrain run before it")
    differing = [
        f"model.{field.name} is {getattr(theirs, field.name)} there and {getattr(ours, field.name)} here"
        for field in dataclasses.fields(ours)
        if field.name not in _FREE and getattr(theirs, field.name) != getattr(ours, field.name)
    ]
    if differing:
        raise ValueError(f"--from {source} holds another net: {'; '.join(differing)}; give a run of the same net")


def _check_ended(source: Path) -> None:
    from trainer.run.folder import RunFolder

    try:
        status = (RunFolder(source).read_summary() or {})["status"]
    except (OSError, ValueError, KeyError, TypeError):
        status = "not ended"
    if status not in _ENDED:
        raise ValueError(f"--from {source} is {status}; let it train to its end, or stop it with --max-steps")


def _newest(source: Path) -> Checkpoint:
    found = load_latest(source)
    if found is None:
        raise ValueError(f"--from {source} has no checkpoint; give a run that train has ended")
    return found


def _digest(found: Checkpoint) -> str:
    return str(read_manifest(found.folder)["files"][TENSORS]["sha256"])
