"""Sums and gathers over ranks; each is the identity when there is one process.

Counts and sums are reduced, never averages of averages. Every rank holds the same number of samples of a half,
so the mean over all ranks' samples is the sum of the ranks' sums over (samples per rank * world size).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.telemetry.spans import Spans

# This process's time in collectives, most of it waiting for the slowest rank: that one shows the least.
collective_spans = Spans()

# The name of the one-tensor gather changed in torch 2.14.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor summed over ranks, in one all-reduce per dtype; inputs are left alone."""
    if world_size() == 1:
        return list(tensors)
    sums: list[Tensor | None] = [None] * len(tensors)
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        places = [i for i, tensor in enumerate(tensors) if tensor.dtype == dtype]
        flat = torch.cat([tensors[i].reshape(-1) for i in places])
        with collective_spans.span(flat.device):
            dist.all_reduce(flat)
        parts = flat.split([tensors[i].numel() for i in places])
        for i, part in zip(places, parts, strict=True):
            sums[i] = part.view(tensors[i].shape)
    return [total for total in sums if total is not None]


def mean_over_ranks(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Each tensor averaged over ranks: right for means that every rank took over equally many samples."""
    ranks = world_size()
    if ranks == 1:
        return list(tensors)
    return list(torch._foreach_div(sum_over_ranks(tensors), ranks))


def gather_rows(rows: Tensor) -> tuple[Tensor, slice]:
    """All ranks' rows [R*n, ...] in rank order, and the slice of them that is this rank's own."""
    if world_size() == 1:
        return rows, slice(0, len(rows))
    gathered = rows.new_empty((world_size() * len(rows), *rows.shape[1:]))
    with collective_spans.span(rows.device):
        _all_gather(gathered, rows.contiguous())
    start = dist.get_rank() * len(rows)
    return gathered, slice(start, start + len(rows))


def average_batch_norm_statistics(buffers: Sequence[Tensor]) -> None:
    """Make running means and variances the mean of all ranks', in place: state stays replicated on every rank."""
    floating = [buffer for buffer in buffers if buffer.is_floating_point()]
    if world_size() > 1 and floating:
        torch._foreach_copy_(floating, mean_over_ranks(floating))
