"""One virtual SGD step by torch's multi-tensor operations: the specification of the fused kernel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def lookahead(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor | None],
    lr: float | Tensor,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    dampening: float = 0.0,
) -> list[Tensor]:
    """theta' of METHOD: training, meta update step 2; out of place and differentiable in params, grads and lr."""
    directions = list(grads)
    if weight_decay:
        directions = list(torch._foreach_add(directions, list(params), alpha=weight_decay))
    steps = directions
    if momentum:
        steps = list(directions)  # a parameter without a buffer yet starts it: m = d
        held = [i for i, buffer in enumerate(momentum_buffers) if buffer is not None]
        if held:
            decayed = torch._foreach_mul([b for b in momentum_buffers if b is not None], momentum)
            moved = torch._foreach_add(decayed, [directions[i] for i in held], alpha=1 - dampening)
            for i, buffer in zip(held, moved, strict=True):
                steps[i] = buffer
        if nesterov:
            steps = list(torch._foreach_add(directions, steps, alpha=momentum))
    if isinstance(lr, Tensor):
        return list(torch._foreach_sub(list(params), torch._foreach_mul(steps, lr)))
    return list(torch._foreach_add(list(params), steps, alpha=-lr))
