"""Which exit each sample of the meta half leaves at: shares of the batch, most confident first."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.backend import Choice, backend_for
from kernels.exit_routing import reference

__all__ = ["quotas", "route", "shares"]

FUSED_MAX_SAMPLES = 8_192  # one program keeps every sample's key in registers


def shares(ratio: float, num_exits: int) -> Tensor:
    """[K] float32 shares p_k = q^k / sum q^j, k = 1..K (METHOD: training, exit ratio q).

    Computed as the authors do, exp(k log q) in float32 and then normalised: their quotas are floors of these very
    numbers, and a share from float64 lands on the other side of an integer now and then.
    Raises ValueError for a ratio that is not positive, or no exit.
    """
    if not (ratio > 0 and math.isfinite(ratio)):
        raise ValueError(f"exit ratio is {ratio}; it must be positive")
    if num_exits < 1:
        raise ValueError(f"{num_exits} exits; there must be at least 1")
    powers = torch.exp(torch.log(torch.tensor(ratio, dtype=torch.float32)) * torch.arange(1.0, num_exits + 1))
    return powers / powers.sum()


def quotas(num_samples: int, ratio: float, num_exits: int) -> list[int]:
    """How many of `num_samples` leave at each exit: floor(n p_k), the product in float32; the last takes the rest."""
    if num_samples < 0:
        raise ValueError(f"{num_samples} samples; the number cannot be negative")
    return list(_quotas(num_samples, ratio, num_exits))


@functools.lru_cache(maxsize=64)
def _quotas(num_samples: int, ratio: float, num_exits: int) -> tuple[int, ...]:
    left, counts = num_samples, []
    for product in (num_samples * shares(ratio, num_exits)).tolist()[:-1]:
        counts.append(min(math.floor(product), left))
        left -= counts[-1]
    return (*counts, left)


def route(confidences: Tensor, quotas: Sequence[int], backend: Choice = "auto") -> Tensor:
    """[n] int64 exit of each sample, 0-based (METHOD: training, meta update step 3).

    confidences  [n, K] floating; NaN counts as the least confident
    quotas       K counts that sum to n; exit k < K takes its quota of the samples most confident at k among those
                 that no earlier exit has taken, exit K the rest; of equal confidences the lower index goes first
    backend      see kernels.backend; the fused kernel takes float32, bfloat16 and float16, at most 8,192 samples
    Raises ValueError where quotas and confidences do not fit.
    """
    if confidences.dim() != 2 or not confidences.is_floating_point():
        raise ValueError(f"confidences are {confidences.dtype} {list(confidences.shape)}; give floating [n, K]")
    num_samples, num_exits = confidences.shape
    if len(quotas) != num_exits or sum(quotas) != num_samples or min(quotas, default=-1) < 0:
        raise ValueError(f"quotas {list(quotas)} must be {num_exits} counts that sum to the {num_samples} samples")
    if backend_for("exit_routing", confidences.device, backend, _unfit(confidences)) == "reference":
        return reference.route(confidences, quotas)
    import kernels.exit_routing.fused as fused  # importing kernels must not need triton

    return fused.route(confidences, quotas)


def _unfit(confidences: Tensor) -> str:
    if confidences.dtype == torch.float64:
        return "float64 confidences"
    if confidences.shape[0] > FUSED_MAX_SAMPLES:
        return f"{confidences.shape[0]} samples to route, at most {FUSED_MAX_SAMPLES} fit one program"
    return ""
