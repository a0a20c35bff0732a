"""Losses, confidences and hits of every exit: one Triton program per sample and exit, logits read once.

The K logits stay where they are: their K addresses are launch arguments and each program selects its own. That is K-1
scalar selects, against a copy of all logits (stacking) or a host-to-device upload per call (a table of addresses).
Bytes moved: forward n*K*C logits; backward the same read and written; tangent rule logits and tangents read.
"""

# ruff: noqa: N803 - what is compiled in is upper case, as in Triton's own kernels
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.exit_losses.reference import ExitLosses
from kernels.launch import launch


@triton.jit
def select(pointers, k, K: tl.constexpr):
    pointer = pointers[0]
    for j in tl.static_range(1, K):
        pointer = tl.where(k == j, pointers[j], pointer)
    return pointer


@triton.jit
def exit_losses_forward(
    logits, labels, losses, confidences, top1, top5, peaks, smoothing,
    K: tl.constexpr, C: tl.constexpr, SMOOTHED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sample, k = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row = select(logits, k, K) + sample * C
    label = tl.load(labels + sample)
    # A label outside the classes reads nothing and makes the loss NaN, which stops the training.
    own = tl.load(row + label, mask=(label >= 0) & (label < C), other=float("nan")).to(tl.float32)
    peak, total, logit_sum, rank = -float("inf"), 0.0, 0.0, 0
    for start in range(0, C, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < C
        z = tl.load(row + columns, mask=inside, other=-float("inf")).to(tl.float32)
        new_peak = tl.maximum(peak, tl.max(z, 0))
        base = tl.where(new_peak == -float("inf"), 0.0, new_peak)  # all -inf so far: exp(-inf - 0) is 0, not NaN
        total = total * tl.exp(peak - base) + tl.sum(tl.exp(z - base), 0)
        peak = new_peak
        if SMOOTHED:
            logit_sum += tl.sum(tl.where(inside, z, 0.0), 0)
        beaten = (z < own) | ((z == own) & (columns >= label))
        rank += tl.sum((inside & (beaten == 0)).to(tl.int32), 0)
    total = tl.where(total > 0, total, float("nan"))  # a row of -inf alone has no softmax
    loss = (peak - own) + tl.log(total)  # not (peak + log total) - own: large logits would lose the digits
    if SMOOTHED:
        loss = (1 - smoothing) * loss + smoothing * ((peak - logit_sum / C) + tl.log(total))
    out = sample * K + k
    tl.store(losses + out, loss)
    tl.store(confidences + out, 1 / total)
    tl.store(top1 + out, rank < 1)
    tl.store(top5 + out, rank < 5)
    tl.store(peaks + out, peak)


@triton.jit
def exit_losses_backward(
    logits, labels, confidences, peaks, cotangents, grads, smoothing,
    K: tl.constexpr, C: tl.constexpr, SMOOTHED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """grad = cotangent * (softmax - target), softmax = exp(z - peak) * confidence."""
    sample, k = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, grad_row = select(logits, k, K) + sample * C, select(grads, k, K) + sample * C
    label = tl.load(labels + sample)
    out = sample * K + k
    confidence, peak = tl.load(confidences + out), tl.load(peaks + out)
    cotangent = tl.load(cotangents + out)
    for start in range(0, C, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < C
        z = tl.load(row + columns, mask=inside, other=-float("inf")).to(tl.float32)
        target = tl.where(columns == label, 1.0, 0.0)
        if SMOOTHED:
            target = (1 - smoothing) * target + smoothing / C
        grad = cotangent * (tl.exp(z - peak) * confidence - target)
        tl.store(grad_row + columns, grad.to(grad_row.dtype.element_ty), mask=inside)


@triton.jit
def exit_losses_tangent(
    logits, tangents, labels, out_tangents, smoothing,
    K: tl.constexpr, C: tl.constexpr, SMOOTHED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """l' = sum_c softmax_c z'_c - target . z', with the softmax recomputed on the way: nothing saved is needed."""
    sample, k = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, tangent_row = select(logits, k, K) + sample * C, select(tangents, k, K) + sample * C
    label = tl.load(labels + sample)
    target = tl.load(tangent_row + label, mask=(label >= 0) & (label < C), other=float("nan")).to(tl.float32)
    peak, total, weighted, tangent_sum = -float("inf"), 0.0, 0.0, 0.0
    for start in range(0, C, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < C
        z = tl.load(row + columns, mask=inside, other=-float("inf")).to(tl.float32)
        dz = tl.load(tangent_row + columns, mask=inside, other=0.0).to(tl.float32)
        new_peak = tl.maximum(peak, tl.max(z, 0))
        base = tl.where(new_peak == -float("inf"), 0.0, new_peak)
        decay, mass = tl.exp(peak - base), tl.exp(z - base)
        total = total * decay + tl.sum(mass, 0)
        weighted = weighted * decay + tl.sum(mass * dz, 0)
        peak = new_peak
        if SMOOTHED:
            tangent_sum += tl.sum(dz, 0)
    if SMOOTHED:
        target = (1 - smoothing) * target + smoothing * (tangent_sum / C)
    tl.store(out_tangents + sample * K + k, weighted / total - target)


def constants(logits: Sequence[Tensor], label_smoothing: float) -> dict[str, Any]:
    """What is compiled in. The class count too: with a bound known only at run time masked loads stay 4 bytes wide.
    A row of up to 4096 classes is one block, a longer one a loop over blocks."""
    C = logits[0].shape[1]
    block = min(triton.next_power_of_2(C), 4096)
    warps = max(1, min(8, block // 256))
    return {"K": len(logits), "C": C, "SMOOTHED": label_smoothing > 0, "BLOCK": block, "num_warps": warps}


def exit_losses(logits: Sequence[Tensor], labels: Tensor, label_smoothing: float = 0.0) -> ExitLosses:
    """Fused form of reference.exit_losses for half and single precision; differentiable once, either way."""
    return ExitLosses(*FusedExitLosses.apply(labels.contiguous(), label_smoothing, *logits)[:4])


def exit_losses_jvp(
    logits: Sequence[Tensor], tangents: Sequence[Tensor], labels: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """Fused form of reference.exit_losses_jvp."""
    out = torch.empty(len(labels), len(logits), dtype=torch.float32, device=labels.device)
    launch(
        exit_losses_tangent, tuple(out.shape), out.device,
        _rows(logits), _rows(tangents), labels.contiguous(), out, float(label_smoothing),
        **constants(logits, label_smoothing),
    )  # fmt: skip
    return out


class FusedExitLosses(torch.autograd.Function):
    @staticmethod
    def forward(labels: Tensor, label_smoothing: float, *logits: Tensor) -> tuple[Tensor, ...]:
        n, K = len(labels), len(logits)
        losses, confidences, peaks = (torch.empty(n, K, dtype=torch.float32, device=labels.device) for _ in range(3))
        top1, top5 = (torch.empty(n, K, dtype=torch.bool, device=labels.device) for _ in range(2))
        launch(
            exit_losses_forward, (n, K), labels.device,
            _rows(logits), labels, losses, confidences, top1, top5, peaks, float(label_smoothing),
            **constants(logits, label_smoothing),
        )  # fmt: skip
        return losses, confidences, top1, top5, peaks

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        labels, ctx.label_smoothing, *logits = inputs
        _, confidences, top1, top5, peaks = output
        ctx.mark_non_differentiable(confidences, top1, top5, peaks)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(labels, confidences, peaks, *logits)
        ctx.save_for_forward(labels, confidences, peaks, *logits)

    @staticmethod
    def backward(ctx: Any, cotangents: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():  # so it is under create_graph=True; the graph would silently end here
            raise ValueError(
                "the fused exit losses are differentiable once and create_graph=True asks for more; "
                "set the kernel backend to reference"
            )
        labels, confidences, peaks, *logits = ctx.saved_tensors
        if cotangents is None:
            return (None, None, *(None for _ in logits))
        grads = tuple(torch.empty_like(z, memory_format=torch.contiguous_format) for z in logits)
        launch(
            exit_losses_backward, tuple(cotangents.shape), labels.device,
            _rows(logits), labels, confidences, peaks, cotangents.contiguous(), grads, float(ctx.label_smoothing),
            **constants(logits, ctx.label_smoothing),
        )  # fmt: skip
        return (None, None, *grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        labels, _, _, *logits = ctx.saved_tensors
        along = [torch.zeros_like(z) if t is None else t for z, t in zip(logits, tangents[2:], strict=True)]
        return exit_losses_jvp(logits, along, labels, ctx.label_smoothing), None, None, None, None


def _rows(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(t.contiguous() for t in tensors)
