"""Cross-entropy, confidence, top-1 and top-5 of every exit in one pass over the logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.backend import Choice, backend_for
from kernels.exit_losses import reference
from kernels.exit_losses.reference import ExitLosses

__all__ = ["ExitLosses", "exit_losses", "exit_losses_jvp"]

FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def exit_losses(
    logits: Sequence[Tensor], labels: Tensor, label_smoothing: float = 0.0, backend: Choice = "auto"
) -> ExitLosses:
    """Losses, confidences and hits of K exits (METHOD: training, l_ik and c_ik).

    logits           K tensors [n, C] of one floating dtype; half precision is computed in float32
    labels           [n] int64 in [0, C)
    label_smoothing  share of the target spread evenly over the C classes, in [0, 1)
    backend          see kernels.backend; the fused kernel takes float32, bfloat16 and float16, and is differentiable
                     once, in reverse or in forward mode; a second derivative needs "reference"
    Raises ValueError for shapes, dtypes or a smoothing that do not fit.
    """
    _check(logits, labels, label_smoothing)
    if backend_for("exit_losses", labels.device, backend, _unfit(logits)) == "reference":
        return reference.exit_losses(logits, labels, label_smoothing)
    import kernels.exit_losses.fused as fused  # importing kernels must not need triton

    return fused.exit_losses(logits, labels, label_smoothing)


def exit_losses_jvp(
    logits: Sequence[Tensor],
    tangents: Sequence[Tensor],
    labels: Tensor,
    label_smoothing: float = 0.0,
    backend: Choice = "auto",
) -> Tensor:
    """[n, K] derivative of the losses along `tangents` (K tensors shaped as the logits), without dual tensors."""
    _check(logits, labels, label_smoothing)
    if [t.shape for t in tangents] != [z.shape for z in logits]:
        raise ValueError(f"tangents are {_shapes(tangents)}, the logits {_shapes(logits)}; give one tangent per logit")
    if backend_for("exit_losses_jvp", labels.device, backend, _unfit([*logits, *tangents])) == "reference":
        return reference.exit_losses_jvp(logits, tangents, labels, label_smoothing)
    import kernels.exit_losses.fused as fused

    return fused.exit_losses_jvp(logits, tangents, labels, label_smoothing)


def _check(logits: Sequence[Tensor], labels: Tensor, label_smoothing: float) -> None:
    if not logits:
        raise ValueError("no logits; give one tensor [n, C] per exit")
    first = logits[0]
    if first.dim() != 2 or any(z.shape != first.shape or z.dtype != first.dtype for z in logits):
        raise ValueError(f"logits are {_shapes(logits)}; every exit must give [n, C] of one shape and dtype")
    if not first.is_floating_point():
        raise ValueError(f"logits are {first.dtype}; give a floating dtype")
    if labels.shape != first.shape[:1] or labels.dtype != torch.int64:
        raise ValueError(f"labels are {labels.dtype} {list(labels.shape)}; give int64 [{first.shape[0]}], one per row")
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label smoothing is {label_smoothing}; it must lie in [0, 1)")


def _unfit(tensors: Sequence[Tensor]) -> str:
    dtypes = {t.dtype for t in tensors}
    if len(dtypes) > 1:
        return "logits and tangents differ in dtype"
    return "" if dtypes <= set(FUSED_DTYPES) else f"{tensors[0].dtype} logits"


def _shapes(tensors: Sequence[Tensor]) -> str:
    return ", ".join(f"{t.dtype} {list(t.shape)}" for t in tensors)
