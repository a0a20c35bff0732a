"""Gradient equilibrium (IMTA, ICCV 2019): identities whose backward pass rescales the gradient (METHOD: IMTA)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class GradientScale(nn.Module):
    """x itself, to the bit; gradients and tangents that pass are multiplied by `factor` while training.

    Tangents too: forward mode is the transpose of what the backward pass does, so that inner products with rescaled
    gradients are what one Jacobian-vector product gives. Written in plain operations: a compiler follows them.
    """

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.on = True

    def forward(self, x: Tensor) -> Tensor:
        if not (self.on and self.training):
            return x
        value = x.detach()
        return value + self.factor * (x - value)


class Equilibrium(nn.Module):
    """What the coarsest feature at the end of block k of K (from 1) passes: 1 / (K - k + 1) before the exit reads it,
    then K - k on its way to the next block. So a block's gradient is a mean over the exits behind it, not a sum.
    """

    def __init__(self, num_exits: int) -> None:
        super().__init__()
        counts = range(num_exits, 0, -1)  # exits from this one on
        self.at_exit = nn.ModuleList(GradientScale(1.0 / count) for count in counts)
        self.onward = nn.ModuleList(GradientScale(count - 1.0) for count in counts)


@contextmanager
def true_gradients(module: nn.Module) -> Iterator[None]:
    """Passes inside have the gradients of their losses: nothing is rescaled."""
    scales = [m for m in module.modules() if isinstance(m, GradientScale) and m.on]
    for scale in scales:
        scale.on = False
    try:
        yield
    finally:
        for scale in scales:
            scale.on = True
