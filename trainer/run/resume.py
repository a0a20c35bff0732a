"""A run goes on from what it saved."""

from __future__ import annotations

from dataclasses import replace

from dataloading.datasets.open import ImageSet
from trainer.learning.state import TrainState
from trainer.run import snapshot
from trainer.run.checkpoint import Checkpoint, load_latest
from trainer.run.folder import RunFolder


def resume(state: TrainState, folder: RunFolder, images: ImageSet) -> Checkpoint | None:
    """Set `state` to the folder's newest whole checkpoint. Every rank reads it for itself.

    Returns it without its tensors (what was passed over is in it), or None where there is no checkpoint at all.
    ValueError where it is of another net or of other images.
    """
    checkpoint = load_latest(folder.path)
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
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"{checkpoint.folder} is whole, but no state that training wrote ({error!r}); give --run another folder"
        ) from error
    return replace(checkpoint, tensors={})
