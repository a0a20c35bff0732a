"""Checkpoints reach the disk in a thread of their own, while training goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from trainer.run.manifest import CheckpointError


@dataclass(frozen=True)
class Outcome:
    """How a write ended: with a folder that is safe on disk, or with the error that kept it from it.

    write_seconds  that the thread took
    """

    iteration: int
    folder: Path | None
    error: CheckpointError | None
    write_seconds: float


class Writer:
    """One write at a time. A snapshot takes as much memory as the state, so no second one may be held: `start` asks
    that the outcome of the write before it was collected.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[Outcome] | None = None

    def start(self, iteration: int, write: Callable[[], Path]) -> None:
        """Begin `write`, which gives the checkpoint's folder or raises CheckpointError."""
        assert self._pending is None, "the outcome of the write before was not collected"
        self._pending = self._thread.submit(_timed, iteration, write)

    def collect(self, *, block: bool) -> Outcome | None:
        """The outcome of the write begun last, once; None where there is none or, unless `block`, not yet.

        What `write` raises besides CheckpointError is raised here.
        """
        if self._pending is None or not (block or self._pending.done()):
            return None
        pending, self._pending = self._pending, None
        return pending.result()

    def close(self) -> None:
        """Wait until what was begun is on disk (or failed)."""
        if self._pending is not None:
            wait([self._pending])
        self._thread.shutdown()


def _timed(iteration: int, write: Callable[[], Path]) -> Outcome:
    began = time.perf_counter()
    folder: Path | None = None
    failed: CheckpointError | None = None
    try:
        folder = write()
    except CheckpointError as error:
        failed = error
    return Outcome(iteration, folder, failed, time.perf_counter() - began)
