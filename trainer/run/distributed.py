"""Which process of how many this is, and the group they form."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from dataloading.heap import keep_heap
from trainer.run.interface import choose_interface

logger = logging.getLogger(__name__)
T = TypeVar("T")
_RECORDED = "2000"  # collective calls that torch's flight recorder remembers
_TOLD_EVERY = 60.0  # seconds


class LostRankError(RuntimeError):
    """A collective call failed, mostly since another rank is gone; the message says where the record of calls lies."""


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

    def meet(self, doing: str, patience: float = 86_400.0, poll: float = 1.0) -> None:
        """Wait, `patience` seconds at most, until every rank is here: after work that can take one node hours longer
        than another. It is no collective call, which would time out.

        doing  what the ranks that are missing are at, for the log
        Raises TimeoutError.
        """
        if self.world_size == 1:
            return
        store, key = dist.distributed_c10d._get_default_store(), f"earlybird/met/{doing}"
        number = store.add(key, 1)  # counts on over meetings of one name
        everyone = -(-number // self.world_size) * self.world_size
        began, told = time.monotonic(), float("-inf")
        while (missing := everyone - store.add(key, 0)) > 0:
            now = time.monotonic()
            if now - began > patience:
                raise TimeoutError(f"{missing} of {self.world_size} ranks are at it after {patience:.0f} s: {doing}")
            if now - told > _TOLD_EVERY:
                logger.info("waiting for %d of %d ranks: %s", missing, self.world_size, doing)
                told = now
            time.sleep(poll)

    def gather(self, items: list[T]) -> list[T]:
        """All ranks' items in the order of the ranks, on every rank; waits for all of them, and for the device."""
        if self.world_size == 1:
            return items
        lists: list[Any] = [None] * self.world_size
        dist.all_gather_object(lists, items)
        return [item for part in lists for item in part]


def take_device(name: str, local_rank: int) -> torch.device:
    """The device of `auto | cpu | cuda`, for this process to work on: a CPU's heap keeps what is freed from now on.

    Raises ValueError where cuda is asked for and there is none.
    """
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
    keep_heap()
    return torch.device("cpu")


@contextmanager
def process_group(device: str, timeout_seconds: float = 600.0, record_in: Path | None = None) -> Iterator[Ranks]:
    """This process among torchrun's (from the environment), or alone; the group is closed at the end.

    After an exception it is left as it is: to close one whose other ranks are in another call may wait for ever.
    record_in  folder where torch's flight recorder leaves rank-R.json when a collective call fails: the last calls of
               this rank, which were done and which were not, on a GPU those of NCCL in rank-R-nccl.json; NCCL's own
               watchdog writes its dump beside it
    Raises LostRankError for a failed collective call.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = take_device(device, local_rank)
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
    _record(record_in)
    if world_size > ranks.local_world_size:
        choose_interface(os.environ.get("MASTER_ADDR", ""))
    dist.init_process_group(
        "nccl" if chosen.type == "cuda" else "gloo",
        timeout=timedelta(seconds=timeout_seconds),
        device_id=chosen if chosen.type == "cuda" else None,
        **_meeting_place(ranks, timeout_seconds),
    )
    try:
        yield ranks
    except RuntimeError as error:
        if not _of_a_collective(error):
            raise
        said, kept = str(error).splitlines()[0][:200], _kept(record_in, ranks)
        raise LostRankError(
            f"rank {ranks.rank} of {world_size} lost another rank ({said}){kept}; started again, the run goes on from "
            f"its newest checkpoint (torchrun --max-restarts does so)"
        ) from error
    dist.destroy_process_group()


def _record(folder: Path | None) -> None:
    """Switch torch's flight recorder on; what the environment says already goes first."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", _RECORDED)
    os.environ.setdefault("TORCH_NCCL_DUMP_ON_TIMEOUT", "1")
    if folder is not None:
        os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(folder / "nccl-rank-"))


def _of_a_collective(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "ncclSystemError"))


def _kept(folder: Path | None, ranks: Ranks) -> str:
    if folder is None:
        return ""
    c10d: Any = torch._C._distributed_c10d
    dumps = {folder / f"rank-{ranks.rank}.json": c10d._dump_fr_trace_json}
    if ranks.device.type == "cuda":  # NCCL has a recorder of its own
        dumps[folder / f"rank-{ranks.rank}-nccl.json"] = c10d._dump_nccl_trace_json
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, dump in dumps.items():
            path.write_bytes(dump())
    except (OSError, RuntimeError) as error:
        return f"; its last calls could not be kept ({error})"
    return f"; its last calls are in {' and '.join(map(str, dumps))}"


def _meeting_place(ranks: Ranks, timeout_seconds: float) -> dict[str, Any]:
    """Where the ranks of this start find each other, as arguments of init_process_group; {} for the usual place.

    torchrun keeps its store when it starts workers again, and torch (2.14) looks there for addresses that the dead
    ones left. So the first rank names a corner of the store that is new, and tells it to each other rank in answer to
    a name that is new too: none can take an old answer for its own.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    store = dist.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        timeout=timedelta(seconds=timeout_seconds),
    )
    own = uuid.uuid4().hex
    if ranks.is_first:
        corner, deadline = own, time.monotonic() + timeout_seconds
        while store.add(f"{corner}/joined", 0) < ranks.world_size - 1:
            for name in (f"earlybird/asks/{other}" for other in range(1, ranks.world_size)):
                if store.check([name]):
                    store.set(f"earlybird/answer/{store.get(name).decode()}", corner)
            if time.monotonic() > deadline:
                raise TimeoutError(f"not all of {ranks.world_size} ranks came within {timeout_seconds:.0f} s")
            time.sleep(0.02)
    else:
        store.set(f"earlybird/asks/{ranks.rank}", own)
        corner = store.get(f"earlybird/answer/{own}").decode()  # waits for it
        store.add(f"{corner}/joined", 1)
    place = dist.PrefixStore(corner, store)  # type: ignore[attr-defined]
    return {"store": place, "rank": ranks.rank, "world_size": ranks.world_size}
