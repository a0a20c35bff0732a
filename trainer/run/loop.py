"""The training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dataloading.batch import Batch
from dataloading.loader import TrainLoader
from trainer.learning.collectives import average_batch_norm_statistics
from trainer.learning.forward import HalfForward
from trainer.learning.meta_gradient import meta_step
from trainer.learning.state import TrainState
from trainer.learning.train_step import train_step
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


def train(state: TrainState, loader: TrainLoader, hooks: Hooks, requests: Requests, last: int) -> bool:
    """Run iterations state.progress.iteration to last - 1; False where a signal ended it early, after saving."""
    progress, log_every, precision = state.progress, state.config.run.log_every, state.network.precision
    window = Window(state.network.module.num_exits, state.network.precision.device)
    for loaded in window.fetched(loader.batches(progress.iteration, last)):
        batch = state.network.seen(loaded.normalized(precision.image_dtype, precision.memory_format))
        for train_half, meta_half in batch.crossed_halves():
            state.guard.keep()  # should this half not be finite
            # Once: the lookahead and the real update share it.
            forward = HalfForward(state.network, train_half, record=state.meta_due)
            if state.meta_due:
                with window.meta_clock():
                    window.looked_ahead(meta_step(state, forward, meta_half))  # moves the weight net only
            window.trained(train_step(state, forward), len(train_half))  # moves the backbone only
        average_batch_norm_statistics(state.network.buffers)
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
