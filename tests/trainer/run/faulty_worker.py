"""Run by tests under torchrun: the command line on one rank, with a fault.

FAULT is `KIND RANK ITERATION MARKER`; all but slow come once, for they leave the file MARKER:
slow  every update takes 0.1 s longer, whatever the iteration
nan   the images of the iteration's first half turn to NaN
stuck SIGTERM comes in the middle of the iteration, and native code that never returns
kill  the process ends by SIGKILL in the middle of the iteration
term  SIGTERM comes while the evaluation after the iteration is under way
"""

from __future__ import annotations

import ctypes
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from dataloading.batch import Batch
from dataloading.loader import EvaluationLoader
from trainer.__main__ import main
from trainer.learning import iteration
from trainer.learning.state import TrainState

KIND, RANK, ITERATION, MARKER = os.environ["FAULT"].split()
reached = {"iteration": 0}
normalized, train_step, advance, batches = (
    Batch.normalized,
    iteration.train_step,
    TrainState.advance,
    EvaluationLoader.__iter__,
)


def due(kind: str) -> bool:
    """Whether this is the place; once."""
    here = (kind, os.environ["RANK"], reached["iteration"]) == (KIND, RANK, int(ITERATION))
    if not here or Path(MARKER).exists():
        return False
    Path(MARKER).touch()
    return True


def spoilt(batch: Batch, *arguments: Any) -> Batch:
    batch = normalized(batch, *arguments)
    if torch.is_grad_enabled() and due("nan"):
        batch.images[: len(batch) // 2] = float("nan")
    return batch


def killed(state: TrainState, *arguments: Any) -> Any:
    reached["iteration"] = state.progress.iteration
    if due("kill"):
        os.kill(os.getpid(), signal.SIGKILL)
    if due("stuck"):
        mutex, lock = ctypes.create_string_buffer(64), ctypes.CDLL(None).pthread_mutex_lock
        lock(mutex)
        os.kill(os.getpid(), signal.SIGTERM)
        lock(mutex)
    if KIND == "slow" and os.environ["RANK"] == RANK:
        time.sleep(0.1)
    return train_step(state, *arguments)


def advanced(state: TrainState) -> None:
    advance(state)
    reached["iteration"] = state.progress.iteration


def terminated(loader: EvaluationLoader) -> Iterator[Batch]:
    for batch in batches(loader):
        if due("term"):
            os.kill(os.getpid(), signal.SIGTERM)
        yield batch


if __name__ == "__main__":
    Batch.normalized = spoilt  # type: ignore[method-assign]
    iteration.train_step = killed  # type: ignore[assignment]
    TrainState.advance = advanced  # type: ignore[method-assign]
    EvaluationLoader.__iter__ = terminated  # type: ignore[method-assign]
    main()
