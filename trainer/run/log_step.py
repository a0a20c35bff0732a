"""Log steps: what the iterations since the last one did, over all ranks."""

from __future__ import annotations

from dataloading.batch import Batch
from dataloading.datasets.open import ImageSet
from trainer.learning.state import TrainState
from trainer.run.distributed import Ranks
from trainer.run.health import Signs, straggler_scores
from trainer.run.interval import Interval
from trainer.run.watchdog import Watchdog
from trainer.telemetry.telemetry import Telemetry
from trainer.telemetry.window import Reading


class LogSteps:
    """Gathers what every rank has to tell, once a log step, and tells it."""

    def __init__(self, images: ImageSet, ranks: Ranks, telemetry: Telemetry, watchdog: Watchdog, signs: Signs) -> None:
        self._images, self._ranks, self._telemetry = images, ranks, telemetry
        self._watchdog, self._signs = watchdog, signs
        self._unreadable: list[tuple[int, int, str]] = []  # iteration, row, reason; of this rank, since the log step

    def trained(self, iteration: int, batch: Batch) -> None:
        """Iteration `iteration` (counted from 1) is done; what could not be read in it is told of later."""
        self._unreadable += [(iteration, row, reason) for row, reason in batch.replaced]

    def forget(self) -> None:
        """What was trained since the last log step does not count."""
        self._unreadable = []

    def log(self, state: TrainState, reading: Reading, saves: Interval) -> float:
        """Tell of a reading; seconds of an iteration. saves  how often"""
        iteration = state.progress.iteration
        epoch_iterations = len(self._images.train) / (2 * state.config.optim.update_batch)
        seconds = reading.seconds / max(1, reading.num_iterations)
        row = reading.row() | {
            "iteration": iteration,
            "epoch": iteration / epoch_iterations,
            "learning_rate": state.lr,
            "weight_net_learning_rate": state.weight_net_lr,
            "checkpoint_interval_seconds": saves.lasts(seconds, epoch_iterations),
        }
        told = self._ranks.gather([(reading.own.work_seconds, self._unreadable)])  # one message a rank and log step
        if self._ranks.world_size > 1:
            # Waiting for others is no work of one's own, and no clock sees it inside a CUDA graph.
            known = not state.network.precision.cuda_graphs
            row["straggler_scores"] = straggler_scores([work for work, _ in told]) if known else None
        for at, image, reason in (bad for _, unreadable in told for bad in unreadable):
            self._telemetry.bad_image(reason, iteration=at, row=image, name=self._images.train.name(image))
        self._unreadable = []
        self._telemetry.train(row, reading.own)
        for name, fields in (*self._signs.trained(reading), *self._signs.compared(row.get("straggler_scores") or [])):
            self._telemetry.event(name, iteration=iteration, **fields)
        for phase, took in self._watchdog.stalls():
            self._telemetry.stalled(phase, took, iteration=iteration)
        return seconds
