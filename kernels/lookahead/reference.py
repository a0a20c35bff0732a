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
    """theta' of METHOD: training, meta update step 2; out of place and differentiable in params, grads and lr.

    theta' is linear in parameter, gradient and buffer: summed up in memory of its own, by a number as rate in one pass
    for each of the three.
    """
    ahead: list[Tensor] = list(params)
    held = {i: buffer for i, buffer in enumerate(momentum_buffers) if momentum and buffer is not None}
    fresh = [i for i in range(len(ahead)) if i not in held]  # m = d
    for places, buffers in ((list(held), list(held.values())), (fresh, [])):
        if not places:
            continue
        thetas, gradients = [params[i] for i in places], [grads[i] for i in places]
        of_direction, of_buffer = (1.0 - dampening if buffers else 1.0), momentum
        if nesterov:
            of_direction, of_buffer = 1.0 + momentum * of_direction, momentum * momentum
        if isinstance(lr, Tensor):
            steps = torch._foreach_mul(gradients, of_direction)
            torch._foreach_add_(steps, thetas, alpha=of_direction * weight_decay)
            if buffers:
                torch._foreach_add_(steps, buffers, alpha=of_buffer)
            moved = torch._foreach_sub(thetas, torch._foreach_mul(steps, lr))
        else:
            moved = torch._foreach_mul(thetas, 1.0 - lr * of_direction * weight_decay)
            torch._foreach_add_(moved, gradients, alpha=-lr * of_direction)
            if buffers:
                torch._foreach_add_(moved, buffers, alpha=-lr * of_buffer)
        for i, theta in zip(places, moved, strict=True):
            ahead[i] = theta
    return ahead
