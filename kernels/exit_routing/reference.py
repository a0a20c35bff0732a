"""The sequential routing rule in plain torch, without a host sync: the specification of the fused kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def route(confidences: Tensor, quotas: Sequence[int]) -> Tensor:
    """[n] int64 exit of each sample (METHOD: training, meta update step 3).

    One stable sort per exit but the last; samples already taken are pushed behind all others by -inf, which no
    untaken sample has (NaN counts as the least confident finite value). Every quota is a number of the host, so
    "the first q of the order" is a slice and nothing waits for the device.
    """
    num_samples, num_exits = confidences.shape
    keys = torch.nan_to_num(confidences.detach(), nan=torch.finfo(confidences.dtype).min)
    exit_of_sample = torch.full((num_samples,), num_exits - 1, dtype=torch.int64, device=confidences.device)
    taken = torch.zeros(num_samples, dtype=torch.bool, device=confidences.device)
    for k, quota in enumerate(quotas[:-1]):
        chosen = keys[:, k].masked_fill(taken, -torch.inf).argsort(descending=True, stable=True)[:quota]
        exit_of_sample.index_fill_(0, chosen, k)
        taken.index_fill_(0, chosen, True)
    return exit_of_sample
