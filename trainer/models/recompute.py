"""Activation checkpointing: a block drops its activations after the forward pass and computes them again later."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, features: Sequence[Tensor]) -> list[Tensor]:
    """block(features), of which only `features` is kept for the backward pass; the second pass is the first one's twin.

    It has the first one's parameters, which may have been put into the net for the time of a functional call, and
    batch-norms normalise as they did; running statistics move in the first pass alone.
    """
    parameters = dict(block.named_parameters())
    tracking = {m: m.track_running_stats for m in block.modules() if isinstance(m, nn.BatchNorm2d)}
    passes = 0

    def run(*features: Tensor) -> tuple[Tensor, ...]:
        nonlocal passes
        passes += 1
        if passes == 1:
            return tuple(block(list(features)))
        now = {norm: norm.track_running_stats for norm in tracking}
        copies = {name: buffer.clone() for name, buffer in block.named_buffers()}
        try:
            _track(tracking)
            return tuple(functional_call(block, {**parameters, **copies}, (list(features),)))
        finally:
            _track(now)

    return list(checkpoint(run, *features, use_reentrant=False, preserve_rng_state=False))


def _track(norms: dict[nn.BatchNorm2d, bool]) -> None:
    for norm, tracks in norms.items():
        norm.track_running_stats = tracks
