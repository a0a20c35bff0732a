"""Which process of how many this is, and the group they form."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """rank of world_size (global), local_rank of local_world_size (on this node), and this process's device."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def gather(self, items: list[T]) -> list[T]:
        """All ranks' items in the order of the ranks, on every rank; waits for all of them, and for the device."""
        if self.world_size == 1:
            return items
        lists: list[Any] = [None] * self.world_size
        dist.all_gather_object(lists, items)
        return [item for part in lists for item in part]


def choose_device(name: str, local_rank: int) -> torch.device:
    """The device of `auto | cpu | cuda`; ValueError where cuda is asked for and there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "--device is cuda, but torch sees no GPU here (torch.cuda.is_available() is False); use --device cpu, or "
            "check the driver with nvidia-smi and CUDA_VISIBLE_DEVICES"
        )
    if name == "cuda" or (name == "auto" and torch.cuda.is_available()):
        if local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"local rank {local_rank} has no GPU of its own: {torch.cuda.device_count()} are visible; start "
                f"torchrun with --nproc-per-node={torch.cuda.device_count()}"
            )
        return torch.device("cuda", local_rank)
    return torch.device("cpu")


@contextmanager
def process_group(device: str, timeout_seconds: float = 600.0) -> Iterator[Ranks]:
    """This process among torchrun's (from the environment), or alone; the group is closed at the end."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = choose_device(device, local_rank)
    ranks = Ranks(
        rank=int(os.environ.get("RANK", "0")),
        world_size=world_size,
        local_rank=local_rank,
        local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
        device=chosen,
    )
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if world_size == 1:
        yield ranks
        return
    dist.init_process_group(
        "nccl" if chosen.type == "cuda" else "gloo",
        timeout=timedelta(seconds=timeout_seconds),
        device_id=chosen if chosen.type == "cuda" else None,
    )
    try:
        yield ranks
    finally:
        dist.destroy_process_group()
