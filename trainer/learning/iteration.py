"""One iteration: both halves of a loaded batch train the backbone, one after the other, each the other's meta half."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from torch import Tensor

from dataloading.batch import Batch
from trainer.learning.collectives import average_batch_norm_statistics
from trainer.learning.forward import HalfForward
from trainer.learning.meta_gradient import meta_step
from trainer.learning.precision import fixed_shapes
from trainer.learning.state import TrainState
from trainer.learning.train_step import train_step


@dataclass(frozen=True)
class HalfStep:
    """What the steps on one half say, on the device.

    trained      of the train step: sums over this rank's samples, loss [K] and top1 [K]; losses and weights [n, K]
    looked_ahead of the meta step: meta_loss; empty where there was none, or one that only kept what a later one needs
    """

    trained: dict[str, Tensor]
    looked_ahead: dict[str, Tensor]


def run_iteration(
    state: TrainState, batch: Batch, meta_clock: Callable[[], AbstractContextManager] = nullcontext
) -> list[HalfStep]:
    """Both halves' steps of a batch that is ready for the net. Nothing here waits for a GPU, and nothing is counted on
    the host, where a replay would not come by: `state.advance` and what is kept of the results are the caller's.

    meta_clock  context of every meta step, to time it
    """
    steps = []
    with fixed_shapes(state.network.precision.device):
        for train_half, meta_half in state.network.seen(batch).crossed_halves():
            state.guard.keep()  # should this half not be finite
            # Once: the lookahead and the real update share it.
            forward = HalfForward(state.network, train_half, record=state.meta_due)
            looked_ahead: dict[str, Tensor] = {}
            if state.meta_due:
                with meta_clock():
                    looked_ahead = meta_step(state, forward, meta_half)  # moves the weight net only
            steps.append(HalfStep(train_step(state, forward), looked_ahead))  # moves the backbone only
    average_batch_norm_statistics(state.network.buffers)
    return steps
