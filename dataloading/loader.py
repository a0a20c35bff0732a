"""The loaders of a run: from settings to batches on the device."""

from __future__ import annotations

import logging
import os
from collections.abc import Generator, Iterable, Iterator
from itertools import islice
from typing import Protocol

import torch

from dataloading.assembly import Target
from dataloading.batch import Batch
from dataloading.config import DataConfig
from dataloading.decode_trial import faster_on_gpu
from dataloading.index import PIXELS, Index
from dataloading.stream import Plan, Stream, evaluation_plans

_TRIAL_BATCHES = 8

log = logging.getLogger(__name__)


class Reader(Protocol):
    """What turns plans into batches, one a plan, in order. The plan's samples may be replaced, never left out."""

    def batches(self, plans: Iterable[Plan]) -> Generator[Batch, None, None]: ...

    def close(self) -> None: ...


class TrainLoader:
    """Training batches of one rank, from any iteration on; holds no position of its own."""

    def __init__(self, stream: Stream, reader: Reader) -> None:
        self.stream, self.reader = stream, reader

    def batches(self, start_iteration: int, end_iteration: int) -> Iterator[Batch]:
        """The batches of iterations [start, end), counted from 0 over the whole run."""
        return self.reader.batches(self.stream.plans(start_iteration, end_iteration))

    def num_iterations(self, epochs: int) -> int:
        """Iterations until every image of `epochs` epochs has come."""
        return self.stream.num_iterations(epochs)

    def ended_epoch(self, num_done: int) -> int | None:
        """The epoch whose last image came in the last of `num_done` iterations; None where none ended there."""
        return self.stream.ended_epoch(num_done)

    def close(self) -> None:
        self.reader.close()


class EvaluationLoader:
    """One rank's share of a split, each image once over all ranks, in equally many batches on every rank.

    Places with mask False are padding, or images that could not be read (those are in Batch.replaced too).
    """

    def __init__(
        self, index: Index, config: DataConfig, batch_size: int, rank: int, world_size: int, reader: Reader
    ) -> None:
        self.index, self.config, self.reader = index, config, reader
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        next(evaluation_plans(index, config, batch_size, rank, world_size), None)  # refuses bad settings here

    def __len__(self) -> int:
        return -(-len(self.index) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[Batch]:
        plans = evaluation_plans(self.index, self.config, self.batch_size, self.rank, self.world_size)
        return self.reader.batches(plans)

    def close(self) -> None:
        self.reader.close()


def train_loader(
    config: DataConfig,
    index: Index,
    *,
    seed: int,
    update_batch: int,
    rank: int = 0,
    world_size: int = 1,
    accumulation: int = 1,
    device: torch.device,
) -> TrainLoader:
    """The training loader of `rank`; an iteration loads 2 * update_batch images over all ranks.

    Raises ValueError for a batch that does not fit the set or the ranks, and for settings that do not fit the device.
    """
    stream = Stream(index, config, seed, update_batch, rank, world_size, accumulation)
    return TrainLoader(stream, _reader(config, index, device, stream.plans(0, _TRIAL_BATCHES)))


def evaluation_loader(
    config: DataConfig,
    index: Index,
    *,
    batch_size: int,
    rank: int = 0,
    world_size: int = 1,
    device: torch.device,
) -> EvaluationLoader:
    """The evaluation loader of `rank`; `batch_size` images a rank and step."""
    plans = evaluation_plans(index, config, batch_size, rank, world_size)
    return EvaluationLoader(index, config, batch_size, rank, world_size, _reader(config, index, device, plans))


def num_threads(config: DataConfig) -> int:
    """Decoding threads of this rank: the setting, or the cores this process may use over the ranks of its node."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return config.num_threads or max(1, len(os.sched_getaffinity(0)) // ranks_here)


def _reader(config: DataConfig, index: Index, device: torch.device, plans: Iterator[Plan]) -> Reader:
    """plans: some of those to come, for a trial where one is needed."""
    target = Target.of(index, config, device)
    if config.source == "synthetic":
        from dataloading.synthetic_loader import SyntheticReader

        return SyntheticReader(target)
    threads, plain = num_threads(config), bool(len(index) and (index.flags & PIXELS).all())
    if config.loader == "torchvision":
        if config.decode == "gpu":
            raise ValueError("data.decode is gpu, but data.loader torchvision decodes on the CPU; set data.loader=dali")
        from dataloading.torch_loader import TorchReader

        log.info("loader: torchvision, %d workers", threads)
        return TorchReader(target, threads)
    if config.decode == "gpu" and device.type != "cuda":
        raise ValueError(f"data.decode is gpu, but the device is {device}; set data.decode=cpu or --device cuda")
    if config.decode == "gpu" and plain:
        raise ValueError("data.decode is gpu, but the set holds plain pixels: nothing to decode; set data.decode=auto")
    if plain:
        from dataloading.pixel_loader import PixelReader

        log.info("loader: %d threads without a decoder, because the set holds plain pixels", threads)
        return PixelReader(target, threads)
    from dataloading.dali_loader import DaliReader

    def dali(on_gpu: bool) -> Reader:
        return DaliReader(target, threads, decode_on_gpu=on_gpu)

    if config.decode == "auto" and device.type == "cuda":
        on_gpu, reason = faster_on_gpu(dali, list(islice(plans, _TRIAL_BATCHES)), device)
    else:
        on_gpu = config.decode == "gpu"
        reason = f"the device is {device}" if config.decode == "auto" else "data.decode says so"
    log.info("loader: DALI, %d threads, decoding on the %s, because %s", threads, "GPU" if on_gpu else "CPU", reason)
    return dali(on_gpu)
