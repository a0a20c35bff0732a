"""A run goes on from what it saved."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dataloading.datasets.open import ImageSet
from trainer.learning.state import TrainState
from trainer.models.imta import ImtaNet
from trainer.run import snapshot
from trainer.run.checkpoint import Checkpoint, load_latest
from trainer.run.distributed import Ranks
from trainer.run.folder import RunFolder
from trainer.run.manifest import CheckpointError
from trainer.run.origin import begin


def start(state: TrainState, folder: RunFolder, images: ImageSet, ranks: Ranks) -> Checkpoint | None:
    """As `resume`; a run that has no checkpoint yet takes its frozen net, where it has one, from its origin."""
    found = resume(state, folder, images, ranks)
    if found is None and isinstance(state.network.module, ImtaNet):
        begin(state.network.module, state.config.origin, images)
    return found


def resume(state: TrainState, folder: RunFolder, images: ImageSet, ranks: Ranks) -> Checkpoint | None:
    """Set `state` to the folder's newest checkpoint that is whole for every rank.

    Returns it without its tensors (what was passed over is in it), or None where there is no checkpoint at all.
    ValueError where it is of another net or of other images.
    """
    checkpoint = latest_for_all(folder.path, ranks)
    if checkpoint is None:
        return None
    theirs = checkpoint.meta.get("data_fingerprint")
    if theirs != images.fingerprint:
        raise ValueError(
            f"--run {folder.path} was trained on other images (fingerprint {str(theirs)[:12]}, now "
            f"{images.fingerprint[:12]}); give the same data or --run another folder"
        )
    try:
        snapshot.restore(state, checkpoint.tensors, checkpoint.meta["state"])
        if state.progress.iteration != checkpoint.iteration:
            raise KeyError(f"it is of iteration {checkpoint.iteration} and of {state.progress.iteration}")
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{checkpoint.folder} is whole, but no state that training wrote ({error!r}); give --run another folder"
        ) from error
    return replace(checkpoint, tensors={})


def latest_for_all(run_folder: Path, ranks: Ranks) -> Checkpoint | None:
    """The newest checkpoint that is whole for every rank, the same on all; None where there is none at all.

    Every rank reads it for itself. What only one of them cannot read (its node's disk, a network that lags) all of
    them pass over: ranks that went on from two states would never notice.
    Raises CheckpointError where a rank sees no checkpoint and another does.
    """
    refused: dict[str, str] = {}
    while True:
        found = load_latest(run_folder, refused)
        chosen = ranks.gather([(found.iteration, found.folder.name) if found is not None else (-1, "")])
        oldest = min(chosen)
        if max(chosen) == oldest:
            return found
        rank = chosen.index(oldest)
        if not oldest[1]:
            raise CheckpointError(
                f"rank {rank} sees no checkpoint in {run_folder}, rank {chosen.index(max(chosen))} sees "
                f"{max(chosen)[1]}; --run must be one folder that all nodes share"
            )
        refused |= {name: f"rank {rank} cannot read it" for _, name in chosen if name != oldest[1]}
