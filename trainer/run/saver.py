"""A run's checkpoints: snapshots taken between iterations, written while training goes on."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

from trainer.config import Config, to_dict
from trainer.learning.state import TrainState
from trainer.run import snapshot
from trainer.run.checkpoint import keep_as_best, write_checkpoint
from trainer.run.checkpoint import snapshot as copied
from trainer.run.deadline import grace_seconds
from trainer.run.distributed import Ranks
from trainer.run.folder import RunFolder
from trainer.run.health import diverged
from trainer.run.manifest import CheckpointError
from trainer.run.writer import Writer
from trainer.telemetry.telemetry import Telemetry


class Saver:
    """Saves the state, which is the same on every rank: the first one copies it to the host and writes it behind the
    training's back. Training waits for the copy, for an earlier write that is not done yet, and where `safe` asks.

    asked_at  iteration of the newest snapshot, -1 without one
    saved_at  iteration of the newest checkpoint that is on disk (on other ranks than the first: asked_at)
    """

    def __init__(
        self, config: Config, ranks: Ranks, folder: RunFolder, telemetry: Telemetry, described: dict[str, Any]
    ) -> None:
        """described  what a checkpoint says of its run besides the configuration: data fingerprint, classes"""
        self.config, self.ranks, self.folder, self.telemetry = config, ranks, folder, telemetry
        self._described = {"config": to_dict(config), **described}
        self._writer = Writer()
        self._held = 0.0  # seconds that training waited for the snapshot under way
        self._grace = grace_seconds(config.run.grace)
        self._warned = False
        self.iteration_seconds = 0.0  # of the last log window
        self.asked_at = self.saved_at = -1

    def save(self, state: TrainState, *, unless_done: bool = False) -> None:
        """Take a snapshot and begin to write it; `unless_done`: not where this iteration was saved already.

        FloatingPointError where the state is no longer finite: it must not push a good checkpoint out.
        """
        iteration = state.progress.iteration
        if unless_done and self.asked_at == iteration:
            return
        if not snapshot.is_finite(state):
            raise diverged("a weight of the net is not finite", iteration, self.saved_at, self.config)
        self.asked_at = iteration
        if not self.ranks.is_first:
            self.saved_at = iteration
            return
        began = time.perf_counter()
        self.settle(block=True)
        waited = time.perf_counter() - began
        tensors, values = snapshot.take(state)
        meta = {**self._described, "state": values}
        keep = self.config.checkpoint.keep
        self._writer.start(
            iteration, partial(write_checkpoint, self.folder.path, iteration, copied(tensors), meta, keep)
        )
        self._held = time.perf_counter() - began
        if waited > 1.0:
            self.telemetry.event("checkpoint waited for the disk", iteration=iteration, seconds=round(waited, 1))

    def settle(self, *, block: bool = False, needed: bool = False) -> None:
        """Account for a write that has ended; with `block` wait for it first.

        A checkpoint that could not be written costs the checkpoint: the disk may be freed before the next one is due.
        With `needed` it is an error (CheckpointError), since no next one is to come.
        """
        began = time.perf_counter()
        outcome = self._writer.collect(block=block)
        if outcome is None:
            return
        if outcome.error is not None:
            if needed:
                raise outcome.error
            self.telemetry.checkpoint_failed(outcome.iteration, str(outcome.error))
            return
        assert outcome.folder is not None
        self.saved_at = outcome.iteration
        held = self._held + (time.perf_counter() - began if block else 0.0)
        self.telemetry.checkpoint(
            outcome.iteration, seconds=held, folder=outcome.folder, write_seconds=outcome.write_seconds
        )
        self._check_grace(held + outcome.write_seconds)

    def safe(self, state: TrainState) -> None:
        """Have `state` on disk before this returns; CheckpointError where it cannot be written."""
        self.settle(block=True)
        if self.saved_at != state.progress.iteration:  # not begun, or it failed: there may be room now
            self.save(state)
            self.settle(block=True, needed=True)

    def keep_best(self, state: TrainState, score: float) -> bool:
        """Keep the checkpoint of `state`, which scored `score`, as the best one: it is never removed.

        False where that failed (the other ranks than the first do not know).
        """
        self.save(state, unless_done=True)
        self.settle(block=True)
        if not self.ranks.is_first:
            return True
        if self.saved_at != state.progress.iteration:
            return False
        try:
            kept = keep_as_best(self.folder.path, self.saved_at)
        except CheckpointError as error:
            self.telemetry.checkpoint_failed(self.saved_at, str(error))
            return False
        self.telemetry.event("best checkpoint", iteration=self.saved_at, top1=round(score, 2), folder=kept.name)
        return True

    def close(self) -> None:
        """Wait until what was begun is on disk, whatever ended the run."""
        self._writer.close()

    def _check_grace(self, save_seconds: float) -> None:
        # A stop that is asked for waits for the iteration it falls into, and one more: ranks agree an iteration late.
        needed = 2 * self.iteration_seconds + save_seconds
        if needed > self._grace and not self._warned:
            self._warned = True
            self.telemetry.event(
                "the grace is too short",
                grace=f"{self._grace:.0f}s",
                needed=f"{needed:.0f}s",
                remedy="a stop would lose what was trained since the last checkpoint: let the cluster wait longer "
                "before it kills, and set run.grace so (and, of torchrun's, TORCH_ELASTIC_SHUTDOWN_TIMEOUT), or save "
                "to a faster disk",
            )
