"""How far a kernel may be from float64, and the tensors that it is tried on."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.backend import interpreting

DEVICE = torch.device("cpu" if interpreting() else "cuda")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def error(value: Tensor, exact: Tensor) -> float:
    return (value.double() - exact).abs().max().item()


def assert_at_most_twice_as_wrong(fused: Tensor, torchs: Tensor, exact: Tensor) -> None:
    """Against float64; the floor of four float32 roundings is for cases that torch happens to get exactly."""
    floor = 4 * torch.finfo(torch.float32).eps * max(1.0, exact.abs().max().item())
    if interpreting() and fused.dtype == torch.bfloat16:  # the interpreter cuts bits off where a GPU rounds
        floor = torch.finfo(torch.bfloat16).eps * exact.abs().max().item()
    assert error(fused, exact) <= 2 * error(torchs, exact) + floor


def assert_every_entry_is_rounded_once(value: Tensor, exact: Tensor, terms: Tensor) -> None:
    """Each entry by itself, however small beside the largest: a last digit of its own away from the exact one.

    terms: by entry, the sum of the sizes of what is added up to it; of that float32 loses 1e-5 at most.
    """
    kind = torch.finfo(value.dtype)
    last_digit = torch.clamp(exact.abs(), min=kind.smallest_normal) * kind.eps
    away = (value.double() - exact.to(value.dtype).double()).abs()
    assert (away <= last_digit + 1e-5 * terms).all()
