"""Which decoder is the faster one here: nvJPEG on the GPU, or libjpeg-turbo on the CPU beside it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from dataloading.stream import Plan

if TYPE_CHECKING:
    from dataloading.loader import Reader

log = logging.getLogger(__name__)

_SECONDS = 1.5
_chosen: dict[torch.device, tuple[bool, str]] = {}  # one trial a process and device: the machine stays what it is


def faster_on_gpu(
    reader: Callable[[bool], Reader], plans: Sequence[Plan], device: torch.device, seconds: float = _SECONDS
) -> tuple[bool, str]:
    """(whether to decode on the GPU, the reason in words), by `seconds` of either on the process's first call.

    reader  makes a reader that decodes on the GPU, or not
    plans   training batches to try on, taken again and again
    Every rank tries at the same time, since they share the node's cores; ranks decide together, by the sum of their
    rates: a collective call where torch.distributed runs. A rank whose GPU cannot decode decides for all.
    """
    if device not in _chosen:
        rates, failed = [_rate(reader(False), plans, device, seconds)], 0
        try:
            rates.append(_rate(reader(True), plans, device, seconds))
        except Exception as error:  # whatever it is: the other ranks wait for this one's rate, and the CPU decodes too
            log.warning("the GPU does not decode here, so the CPU will: %s", error)
            rates.append(0.0)
            failed = 1
        told = torch.tensor([*rates, failed])
        if dist.is_available() and dist.is_initialized():
            told = told.to(device)
            dist.all_reduce(told)
        on_cpu, on_gpu, num_failed = told.tolist()
        words = f"a trial gave {on_gpu:,.0f} images/s on the GPU and {on_cpu:,.0f} on the CPU, all ranks together"
        if num_failed:
            words = f"a trial on the GPU failed on {num_failed:.0f} of the ranks"
        _chosen[device] = not num_failed and on_gpu >= on_cpu, words
    return _chosen[device]


def _rate(reader: Reader, plans: Sequence[Plan], device: torch.device, seconds: float) -> float:
    """Images per second from a warm start; the reader is closed."""
    with closing(reader):
        for _ in reader.batches(plans):  # fetches the files, builds what is built at first use
            pass
        images, begun = 0, time.perf_counter()
        while True:
            with closing(reader.batches(plans)) as batches:
                for batch in batches:
                    if device.type == "cuda":
                        torch.cuda.synchronize(device)
                    images += len(batch)
                    if (taken := time.perf_counter() - begun) >= seconds:
                        return images / taken
