"""Where the real optimizer's next step would take the parameters, without taking it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.backend import Choice, backend_for
from kernels.lookahead import reference

__all__ = ["lookahead"]


def lookahead(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    momentum_buffers: Sequence[Tensor | None],
    lr: float | Tensor,
    momentum: float,
    weight_decay: float,
    nesterov: bool,
    dampening: float = 0.0,
    backend: Choice = "auto",
) -> list[Tensor]:
    """New tensors theta' = theta - lr * s; nothing given is changed (METHOD: training, meta update step 2).

    d = grad + weight_decay * theta; m = momentum * buffer + (1 - dampening) * d, or d where the buffer is None;
    s = d + momentum * m with Nesterov, else m; with momentum 0 buffers are unused and s = d, as in torch.optim.SGD.

    lr       number or 0-d tensor (then read on the device, no host sync)
    backend  see kernels.backend; the fused kernel takes float32 tensors that need no gradient through the step, outside
             CUDA graphs
    Raises ValueError where the lists differ in length or the settings do not fit.
    """
    if not len(params) == len(grads) == len(momentum_buffers):
        raise ValueError(
            f"{len(params)} parameters, {len(grads)} gradients, {len(momentum_buffers)} momentum buffers; "
            "give one of each (None for a buffer that does not exist yet)"
        )
    if isinstance(lr, Tensor) and lr.dim():
        raise ValueError(f"lr is a tensor {list(lr.shape)}; give a number or a 0-d tensor")
    if nesterov and (momentum <= 0 or dampening):
        raise ValueError(
            f"Nesterov with momentum {momentum}, dampening {dampening}; it needs momentum and no dampening"
        )
    if not params:
        return []
    unfit = _unfit(params, grads, momentum_buffers, lr)
    if backend_for("lookahead", params[0].device, backend, unfit) == "reference":
        return reference.lookahead(params, grads, momentum_buffers, lr, momentum, weight_decay, nesterov, dampening)
    import kernels.lookahead.fused as fused  # importing kernels must not need triton

    return fused.lookahead(params, grads, momentum_buffers, lr, momentum, weight_decay, nesterov, dampening)


def _unfit(
    params: Sequence[Tensor], grads: Sequence[Tensor], buffers: Sequence[Tensor | None], lr: float | Tensor
) -> str:
    tensors = [*params, *grads, *(b for b in buffers if b is not None)]
    others = {t.dtype for t in tensors} - {torch.float32}
    if others:
        return f"{others.pop()} parameters, gradients or buffers"
    if params[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return "a CUDA graph is recorded, which would outlive the uploaded table of addresses"
    inputs = [*params, *grads, *([lr] if isinstance(lr, Tensor) else [])]
    if torch.is_grad_enabled() and any(t.requires_grad for t in inputs):
        return "a gradient through the lookahead is recorded"
    return ""
