"""The training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dataloading.batch import Batch
from dataloading.loader import TrainLoader
from trainer.learning.graphs import iterating
from trainer.learning.state import TrainState
from trainer.run.signals import Requests
from trainer.telemetry.window import Reading, Window


@dataclass(frozen=True)
class Hooks:
    """What happens between iterations, on every rank; `iteration` counts those that are done.

    log       receives the reading of a log step
    trained   receives the batch of every iteration that is done
    between   (epoch that just ended or None, stop, save): evaluate and save where that is due; True to end here
    """

    log: Callable[[TrainState, Reading], None]
    trained: Callable[[Batch], None]
    between: Callable[[int | None, bool, bool], bool]


def run_loop(state: TrainState, loader: TrainLoader, hooks: Hooks, requests: Requests, last: int) -> bool:
    """Run iterations state.progress.iteration to last - 1; False where a signal ended it early, after saving."""
    progress, log_every, precision = state.progress, state.config.run.log_every, state.network.precision
    window = Window(state.network.module.num_exits, state.network.precision.device)
    with iterating(state) as run_iteration:
        for loaded in window.fetched(loader.batches(progress.iteration, last)):
            batch = loaded.normalized(precision.image_dtype, precision.memory_format)
            # Each half trains the backbone once and, where it is due, judges the other's weights.
            steps = run_iteration(state, batch, window.meta_clock)
            for (half, _), step in zip(batch.crossed_halves(), steps, strict=True):
                window.add(step, len(half))
                state.guard.saw(progress.iteration, half.ids, step.trained["losses"])
            state.advance()
            hooks.trained(batch)

            stop, save = requests.poll()
            epoch = loader.ended_epoch(progress.iteration)  # None inside an epoch
            if stop or epoch is not None or progress.iteration % log_every == 0 or progress.iteration == last:
                hooks.log(state, window.read())  # waits for the device, here only
            with window.paused():
                if hooks.between(epoch, stop, save):
                    return False
    return True
