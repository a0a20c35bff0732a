"""Iterations as CUDA graphs: what an iteration launches is recorded once and then replayed by one call of the driver.

A multi-exit net is hundreds of small layers, and every derivative of them small kernels: launched one by one they keep
a GPU waiting for the host. A replay repeats the recorded kernels on the recorded addresses, so everything that changes
from one iteration to the next lies on the device in memory of its own: the batch, the learning rates
(`TrainState.rate`), the counts of steps and of updates left out.
"""

from __future__ import annotations

import functools
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from dataloading.batch import Batch
from trainer.learning.collectives import collective_spans, world_size
from trainer.learning.iteration import HalfStep, run_iteration
from trainer.learning.state import TrainState

logger = logging.getLogger(__name__)

WARM_UP, WARM_UP_RANKS = 3, 11  # iterations of a kind before it is recorded; DDP settles its buckets in the first ten

Iteration = Callable[..., list[HalfStep]]  # as run_iteration
Work = Callable[[], list[HalfStep]]


class Recorded(Protocol):
    """As torch.cuda.CUDAGraph is."""

    def replay(self) -> None: ...

    def reset(self) -> None: ...


Record = Callable[[Work], tuple[list[HalfStep], Recorded]]


@dataclass(frozen=True)
class _Graph:
    """inputs: where a batch is copied to; steps: where a replay leaves what it found"""

    inputs: Batch
    steps: list[HalfStep]
    recorded: Recorded


class GraphedIteration:
    """`run_iteration`, recorded: one graph of iterations with a meta step and one of those without.

    record  runs its argument once in order to record it; gives what it returned, and the recording. Recording itself
            computes nothing
    The state's tensors must stay the ones they are: after a state was restored, take a new one. Close the old one.
    """

    def __init__(self, state: TrainState, record: Record | None = None) -> None:
        device = state.network.precision.device
        self._record = record or _Recorder(device)
        self._device, self._seen = device, Counter[bool]()
        self._warm_up = _warm_up()
        self._graphs: dict[bool, _Graph] = {}
        self._lead = _Lead(device)

    def __call__(
        self, state: TrainState, batch: Batch, meta_clock: Callable[[], AbstractContextManager] = nullcontext
    ) -> list[HalfStep]:
        """As `run_iteration`; meta steps inside a graph cannot be timed."""
        due = state.meta_due
        if self._seen[due] < self._warm_up:
            self._seen[due] += 1
            with beside(self._device):
                return run_iteration(state, batch, meta_clock)
        graph = self._graphs.get(due)
        if graph is None:
            graph = self._graphs[due] = self._recorded(state, batch)
        if graph.inputs.images.shape != batch.images.shape:
            raise RuntimeError(f"a graph of {list(graph.inputs.images.shape)} images got {list(batch.images.shape)}")
        graph.inputs.images.copy_(batch.images)
        graph.inputs.labels.copy_(batch.labels)
        graph.recorded.replay()
        # The next replay writes over its own results and, sharing memory, over the other graph's.
        steps = [HalfStep(_copies(step.trained), _copies(step.looked_ahead)) for step in graph.steps]
        self._lead.queued()
        return steps

    def close(self) -> None:
        """Give the graphs back now, whoever holds this object, as the traceback of an exception does: NCCL waits for
        ever to close a group of ranks of whose calls there still is a graph."""
        for graph in self._graphs.values():
            graph.recorded.reset()
        self._graphs.clear()

    def _recorded(self, state: TrainState, batch: Batch) -> _Graph:
        inputs = replace(batch, images=batch.images.clone(), labels=batch.labels.clone())
        with collective_spans.uncounted():  # an event inside a graph has no time
            steps, recorded = self._record(lambda: run_iteration(state, inputs))
        logger.info(
            "precision.cuda_graphs: recorded an iteration %s a meta step", "with" if state.meta_due else "without"
        )
        return _Graph(inputs, steps, recorded)


def iteration_of(state: TrainState) -> Iteration:
    """How this state's iterations run: one by one, or as graphs."""
    return GraphedIteration(state) if state.network.precision.cuda_graphs else run_iteration


@contextmanager
def iterating(state: TrainState) -> Iterator[Iteration]:
    """`iteration_of` for as long as this lasts: at its end, an exception's too, there are no graphs left."""
    iteration = iteration_of(state)
    try:
        yield iteration
    finally:
        if isinstance(iteration, GraphedIteration):
            iteration.close()


def settling(state: TrainState) -> int:
    """Iterations of a kind, with a meta step or without, until the next one of that kind is like any other: the first
    makes state and loads kernels, and graphs are recorded in the last."""
    return _warm_up() + 1 if state.network.precision.cuda_graphs else 1


def _warm_up() -> int:
    return WARM_UP if world_size() == 1 else WARM_UP_RANKS


@functools.cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The stream of this process in which DDP is built, iterations warm up and are recorded: autograd leaves its work
    on the stream of the first pass, which may not be the default one."""
    return torch.cuda.Stream(device)


class _Lead:
    """Keeps the host no more than `iterations` ahead of the GPU.

    A replay returns at once. The host would go on to the next log step, and every batch that it passes meanwhile stays
    in the GPU's memory until its iteration has run.
    """

    def __init__(self, device: torch.device, iterations: int = 2) -> None:
        self._device, self._iterations = device, iterations
        self._ends: deque[torch.cuda.Event] = deque()

    def queued(self) -> None:
        """An iteration has been asked for."""
        if self._device.type != "cuda":
            return
        end = torch.cuda.Event(blocking=True)  # whoever waits sleeps: the loader's threads need the core
        end.record(torch.cuda.current_stream(self._device))
        self._ends.append(end)
        if len(self._ends) > self._iterations:
            self._ends.popleft().synchronize()  # waits for an iteration while others are queued: the GPU never does


class _Recorder:
    """Records CUDA graphs that share one pool of memory: only one of them runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._pool = device, torch.cuda.graph_pool_handle()

    def __call__(self, work: Work) -> tuple[list[HalfStep], Recorded]:
        graph = torch.cuda.CUDAGraph()
        # Threads of the loader go on moving batches meanwhile: what they do is no error of this thread's.
        stream = side_stream(self._device)
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                steps = work()
        except BaseException:
            graph.reset()  # half a graph holds calls of NCCL too
            raise
        return steps, graph


@contextmanager
def beside(device: torch.device) -> Iterator[None]:
    """Work inside runs on the side stream, after what was asked for before and ahead of what comes after."""
    if device.type != "cuda":
        yield
        return
    stream = side_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}
