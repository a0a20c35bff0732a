"""Batch-norm and ReLU in three launches a direction: column sums, their totals by channel, one pass that writes.

Activations are a matrix whose columns each belong to one channel, whatever the layout: channels-last rows are pixels,
contiguous ones images. A row takes in as many of them as make its length a multiple of 16, for loads of 16 bytes; the
columns of a channel are added up with the totals. Every sum has one order: no atomics, the same bits every time.
Values moved: forward x twice, y; backward x and dy twice, dx; tangent rule x and t twice, t'. No mask is kept: whether
a value passed is computed again from x.
"""

# ruff: noqa: N803 - what is compiled in is upper case, as in Triton's own kernels
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional

from kernels.launch import launch
from kernels.norm_relu.columns import Columns
from kernels.norm_relu.reference import NormReLU, Running


@triton.jit
def place(row, column, width):
    return row.to(tl.int64)[:, None] * width + column[None, :]


@triton.jit
def strided_place(row, column, width, period, stride, DENSE: tl.constexpr):
    """The same in a tensor whose periods (pixels or images) lie `stride` values apart: a slice of channels."""
    if DENSE:
        return place(row, column, width)
    apart = (column // period).to(tl.int64) * stride + column % period
    return row.to(tl.int64)[:, None] * (width // period * stride.to(tl.int64)) + apart[None, :]


@triton.jit
def share(width, rows_each, BLOCK_W: tl.constexpr):
    """(first row, columns, number of the share) of this program."""
    blocks = tl.cdiv(width, BLOCK_W)
    split = tl.program_id(0) // blocks
    column = tl.program_id(0) % blocks * BLOCK_W + tl.arange(0, BLOCK_W)
    return split * rows_each, column, split


@triton.jit
def by_column(values, column, width, inner, C):
    return tl.load(values + (column // inner) % C, mask=column < width, other=0.0)[None, :]


@triton.jit
def rounded(value, KIND: tl.constexpr):
    return value.to(KIND).to(tl.float32)


@triton.jit
def rows_of(column, total, rows, width):
    """How many rows have this column: the last one may end early."""
    return rows - ((rows - 1).to(tl.int64) * width + column >= total).to(tl.int32)


@triton.jit(do_not_specialize=["rows", "rows_each"])
def moments_kernel(
    x, means, squares, total, rows, width, rows_each, inner, C, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Mean and summed squared distance from it, by share and column: Welford's recursion in every lane.

    Of x less the channel's first value: means far from zero would lose the digits that tell values apart."""
    first, column, split = share(width, rows_each, BLOCK_W)
    near = tl.load(x + (column // inner) % C * inner, mask=column < width, other=0.0).to(tl.float32)[None, :]
    lane = tl.arange(0, BLOCK_R)
    mean = tl.zeros((BLOCK_R, BLOCK_W), tl.float32)
    square = tl.zeros((BLOCK_R, BLOCK_W), tl.float32)
    step = 0.0
    for start in range(0, rows_each, BLOCK_R):
        offset = place(first + start + lane, column, width)
        inside = (column < width)[None, :] & (offset < total)
        value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32) - near
        step += 1.0
        apart = tl.where(inside, value - mean, 0.0)
        mean += apart * (1.0 / step)
        square += tl.where(inside, apart * (value - mean), 0.0)
    left = tl.minimum(first + rows_each, rows_of(column, total, rows, width)) - first
    count = tl.maximum((left[None, :] - lane[:, None] + BLOCK_R - 1) // BLOCK_R, 0).to(tl.float32)
    middle = tl.sum(count * mean, 0) / tl.maximum(tl.sum(count, 0), 1.0)
    apart = mean - middle[None, :]
    square = tl.sum(square + count * apart * apart, 0)
    tl.store(means + split.to(tl.int64) * width + column, middle, mask=column < width)
    tl.store(squares + split.to(tl.int64) * width + column, square, mask=column < width)


@triton.jit
def part(start, channel, total, rows, width, rows_each, inner, C, splits, BLOCK_P: tl.constexpr):
    """(place, number of values, whether there is one) of a channel's partial sums from number `start` on."""
    number = start + tl.arange(0, BLOCK_P)
    folds = width // C  # columns of a channel
    split, fold = number // folds, number % folds
    column = (fold // inner * (inner * C) + fold % inner)[:, None] + (channel * inner)[None, :]
    inside = (split < splits)[:, None] & (channel < C)[None, :]
    first = (split * rows_each)[:, None]
    count = tl.minimum(first + rows_each, rows_of(column, total, rows, width)) - first
    count = tl.where(inside, tl.maximum(count, 0), 0).to(tl.float32)
    return split.to(tl.int64)[:, None] * width + column, count, inside


@triton.jit(do_not_specialize=["rows", "rows_each", "splits"])
def statistics_kernel(
    x, means, squares, mean_out, invstd_out, running_mean, running_var, num_batches, eps, momentum,
    total, rows, width, rows_each, inner, C, splits,
    TRACKED: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    known = channel < C
    values = (total // C).to(tl.float32)  # of a channel
    moved = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for start in range(0, splits * (width // C), BLOCK_P):
        offset, count, inside = part(start, channel, total, rows, width, rows_each, inner, C, splits, BLOCK_P)
        moved += count * tl.load(means + offset, mask=inside, other=0.0)
    mean = tl.sum(moved, 0) / values
    square = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for start in range(0, splits * (width // C), BLOCK_P):
        offset, count, inside = part(start, channel, total, rows, width, rows_each, inner, C, splits, BLOCK_P)
        apart = tl.load(means + offset, mask=inside, other=0.0) - mean[None, :]
        square += tl.load(squares + offset, mask=inside, other=0.0) + count * apart * apart
    variance = tl.sum(square, 0) / values
    mean += tl.load(x + channel * inner, mask=known, other=0.0).to(tl.float32)
    tl.store(mean_out + channel, mean, mask=known)
    tl.store(invstd_out + channel, tl.div_rn(1.0, tl.sqrt_rn(variance + eps)), mask=known)
    if TRACKED:
        before = tl.load(running_mean + channel, mask=known)
        tl.store(running_mean + channel, before + momentum * (mean - before), mask=known)
        unbiased = variance * (values / (values - 1.0))
        before = tl.load(running_var + channel, mask=known)
        tl.store(running_var + channel, before + momentum * (unbiased - before), mask=known)
        if tl.program_id(0) == 0:
            tl.store(num_batches, tl.load(num_batches) + 1)


@triton.jit(do_not_specialize=["rows_each"])
def norm_relu_kernel(
    x, y, mean, invstd, weight, bias, total, width, rows_each, inner, C,
    BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    first, column, _ = share(width, rows_each, BLOCK_W)
    m, s = by_column(mean, column, width, inner, C), by_column(invstd, column, width, inner, C)
    w, b = by_column(weight, column, width, inner, C), by_column(bias, column, width, inner, C)
    for start in range(0, rows_each, BLOCK_R):
        offset = place(first + start + tl.arange(0, BLOCK_R), column, width)
        inside = (column < width)[None, :] & (offset < total)
        value = tl.load(x + offset, mask=inside, other=0.0).to(tl.float32)
        value = tl.fma((value - m) * s, w, b)
        value = tl.where(value <= 0, 0.0, value)  # NaN stays NaN, as in torch
        tl.store(y + offset, value.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows_each"])
def sums_kernel(
    x, t, mean, invstd, weight, bias, sums, along_xhat, total, width, rows_each, inner, C, period, stride,
    MASKED: tl.constexpr, DENSE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """Sums of t and of t * xhat by share and column. MASKED: of what ReLU lets pass."""
    first, column, split = share(width, rows_each, BLOCK_W)
    m, s = by_column(mean, column, width, inner, C), by_column(invstd, column, width, inner, C)
    w, b = by_column(weight, column, width, inner, C), by_column(bias, column, width, inner, C)
    one = tl.zeros((BLOCK_R, BLOCK_W), tl.float32)
    other = tl.zeros((BLOCK_R, BLOCK_W), tl.float32)
    for start in range(0, rows_each, BLOCK_R):
        row = first + start + tl.arange(0, BLOCK_R)
        offset = place(row, column, width)
        inside = (column < width)[None, :] & (offset < total)
        xhat = (tl.load(x + offset, mask=inside, other=0.0).to(tl.float32) - m) * s
        at = strided_place(row, column, width, period, stride, DENSE)
        g = tl.load(t + at, mask=inside, other=0.0).to(tl.float32)
        if MASKED:
            g = tl.where(rounded(tl.fma(xhat, w, b), x.dtype.element_ty) <= 0, 0.0, g)
        one += g
        other += tl.where(inside, g * xhat, 0.0)
    to = split.to(tl.int64) * width + column
    tl.store(sums + to, tl.sum(one, 0), mask=column < width)
    tl.store(along_xhat + to, tl.sum(other, 0), mask=column < width)


@triton.jit(do_not_specialize=["splits"])
def totals_kernel(
    sums, along_xhat, out_one, out_xhat, width, inner, C, splits, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
):  # fmt: skip
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    one = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    other = tl.zeros((BLOCK_P, BLOCK_C), tl.float32)
    for start in range(0, splits * (width // C), BLOCK_P):
        offset, _, inside = part(start, channel, 0, splits, width, 1, inner, C, splits, BLOCK_P)
        one += tl.load(sums + offset, mask=inside, other=0.0)
        other += tl.load(along_xhat + offset, mask=inside, other=0.0)
    tl.store(out_one + channel, tl.sum(one, 0), mask=channel < C)
    tl.store(out_xhat + channel, tl.sum(other, 0), mask=channel < C)


@triton.jit(do_not_specialize=["rows_each"])
def norm_relu_backward(
    x, dy, dx, mean, invstd, weight, bias, d_bias, d_weight, total, width, rows_each, inner, C, period, stride,
    DENSE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """dx = weight / std * (g - mean g - xhat * mean (g xhat)), g what ReLU lets pass of dy."""
    first, column, _ = share(width, rows_each, BLOCK_W)
    m, s = by_column(mean, column, width, inner, C), by_column(invstd, column, width, inner, C)
    w, b = by_column(weight, column, width, inner, C), by_column(bias, column, width, inner, C)
    values = (total // C).to(tl.float32)
    level = by_column(d_bias, column, width, inner, C) / values
    slope = by_column(d_weight, column, width, inner, C) / values
    for start in range(0, rows_each, BLOCK_R):
        row = first + start + tl.arange(0, BLOCK_R)
        offset = place(row, column, width)
        inside = (column < width)[None, :] & (offset < total)
        xhat = (tl.load(x + offset, mask=inside, other=0.0).to(tl.float32) - m) * s
        at = strided_place(row, column, width, period, stride, DENSE)
        g = tl.load(dy + at, mask=inside, other=0.0).to(tl.float32)
        g = tl.where(rounded(tl.fma(xhat, w, b), x.dtype.element_ty) <= 0, 0.0, g)
        tl.store(dx + offset, (w * s * (g - level - xhat * slope)).to(dx.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["rows_each"])
def norm_relu_tangent(
    x, t, out, mean, invstd, weight, bias, weight_t, bias_t, along_one, along_xhat,
    total, width, rows_each, inner, C, period, stride,
    DENSE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_W: tl.constexpr,
):  # fmt: skip
    """weight / std * (t - mean t - xhat * mean (t xhat)) + weight' xhat + bias', where ReLU lets it pass."""
    first, column, _ = share(width, rows_each, BLOCK_W)
    m, s = by_column(mean, column, width, inner, C), by_column(invstd, column, width, inner, C)
    w, b = by_column(weight, column, width, inner, C), by_column(bias, column, width, inner, C)
    values = (total // C).to(tl.float32)
    slope_t = w * s
    slope_x = by_column(weight_t, column, width, inner, C)
    slope_x -= slope_t * (by_column(along_xhat, column, width, inner, C) / values)
    level = by_column(along_one, column, width, inner, C) / values
    moved = by_column(bias_t, column, width, inner, C)
    for start in range(0, rows_each, BLOCK_R):
        row = first + start + tl.arange(0, BLOCK_R)
        offset = place(row, column, width)
        inside = (column < width)[None, :] & (offset < total)
        xhat = (tl.load(x + offset, mask=inside, other=0.0).to(tl.float32) - m) * s
        at = strided_place(row, column, width, period, stride, DENSE)
        tangent = slope_t * (tl.load(t + at, mask=inside, other=0.0).to(tl.float32) - level) + slope_x * xhat + moved
        tangent = tl.where(rounded(tl.fma(xhat, w, b), x.dtype.element_ty) <= 0, 0.0, tangent)
        tl.store(out + offset, tangent.to(out.dtype.element_ty), mask=inside)


def norm_relu(x: Tensor, weight: Tensor, bias: Tensor, eps: float, running: Running | None = None) -> NormReLU:
    """Fused form of reference.norm_relu; twice differentiable in reverse mode (the second time by torch's own
    operations), once in forward mode."""
    mean, variance, num_batches, momentum = running or (None, None, None, 0.0)
    return NormReLU(*FusedNormReLU.apply(x, weight, bias, eps, mean, variance, num_batches, momentum))


def norm_relu_jvp(
    x: Tensor, tangent: Tensor, mean: Tensor, invstd: Tensor,
    weight: Tensor, bias: Tensor, weight_tangent: Tensor, bias_tangent: Tensor,
) -> Tensor:  # fmt: skip
    """Fused form of reference.norm_relu_jvp."""
    columns = Columns.of(x)
    weight, bias = weight.contiguous(), bias.contiguous()
    tangent, stride = columns.beside(tangent)
    along_one, along_xhat = _sums(columns, tangent, stride, mean, invstd, weight, bias, masked=False)
    out = torch.empty_like(columns.x)
    splits, each = columns.written()
    launch(
        norm_relu_tangent, columns.grid(splits), x.device,
        columns.x, tangent, out, mean, invstd, weight, bias, weight_tangent.contiguous(), bias_tangent.contiguous(),
        along_one, along_xhat,
        x.numel(), columns.width, each, columns.inner, columns.channels, columns.period, stride,
        DENSE=stride == columns.period, **columns.constants,
    )  # fmt: skip
    return out


class FusedNormReLU(torch.autograd.Function):
    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor, eps: float,
        running_mean: Tensor | None, running_var: Tensor | None, num_batches: Tensor | None, momentum: float,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        columns = Columns.of(x)
        mean, invstd = columns.totals()
        shape = (columns.inner, columns.channels)
        splits, each = columns.reduced()
        means, squares = columns.partial(splits)
        launch(
            moments_kernel, columns.grid(splits), x.device,
            columns.x, means, squares, x.numel(), columns.rows, columns.width, each, *shape, **columns.constants,
        )  # fmt: skip
        tracked = (running_mean, running_var, num_batches) if num_batches is not None else (mean, mean, mean)
        grid, constants = columns.per_channel
        launch(
            statistics_kernel, grid, x.device,
            columns.x, means, squares, mean, invstd, *tracked, eps, momentum,
            x.numel(), columns.rows, columns.width, each, *shape, splits,
            TRACKED=num_batches is not None, **constants,
        )  # fmt: skip
        y = torch.empty_like(columns.x)
        splits, each = columns.written()
        launch(
            norm_relu_kernel, columns.grid(splits), x.device,
            columns.x, y, mean, invstd, weight.contiguous(), bias.contiguous(),
            x.numel(), columns.width, each, *shape, **columns.constants,
        )  # fmt: skip
        return y, mean, invstd

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, bias, ctx.eps, *_ = inputs
        _, mean, invstd = output
        ctx.mark_non_differentiable(mean, invstd)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, bias, mean, invstd)
        ctx.save_for_forward(x, weight, bias, mean, invstd)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, invstd = ctx.saved_tensors
        if dy is None:
            return (None,) * 8
        if torch.is_grad_enabled():  # so it is under create_graph=True: torch's operations have second derivatives
            asked = [t for t, needed in zip((x, weight, bias), ctx.needs_input_grad, strict=False) if needed]
            y = functional.relu(functional.batch_norm(x, None, None, weight, bias, True, 0.0, ctx.eps))
            found = iter(torch.autograd.grad(y, asked, dy, create_graph=True))
            return (*(next(found) if needed else None for needed in ctx.needs_input_grad[:3]), *(None,) * 5)
        columns = Columns.of(x)
        weight, bias = weight.contiguous(), bias.contiguous()
        dy, stride = columns.beside(dy)
        d_bias, d_weight = _sums(columns, dy, stride, mean, invstd, weight, bias, masked=True)
        if not ctx.needs_input_grad[0]:
            return None, d_weight, d_bias, *(None,) * 5
        dx = torch.empty_like(columns.x)
        splits, each = columns.written()
        launch(
            norm_relu_backward, columns.grid(splits), x.device,
            columns.x, dy, dx, mean, invstd, weight, bias, d_bias, d_weight,
            x.numel(), columns.width, each, columns.inner, columns.channels, columns.period, stride,
            DENSE=stride == columns.period, **columns.constants,
        )  # fmt: skip
        return dx, d_weight, d_bias, *(None,) * 5

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, bias, mean, invstd = ctx.saved_tensors
        along = [torch.zeros_like(t) if d is None else d for t, d in zip((x, weight, bias), tangents[:3], strict=True)]
        return norm_relu_jvp(x, along[0], mean, invstd, weight, bias, *along[1:]), None, None


def _sums(
    columns: Columns, t: Tensor, stride: int, mean: Tensor, invstd: Tensor, weight: Tensor, bias: Tensor, masked: bool
) -> tuple[Tensor, Tensor]:
    """[C] each: the sum of t, and of t * xhat; masked: of what ReLU lets pass."""
    splits, each = columns.reduced()
    sums, along_xhat = columns.partial(splits)
    launch(
        sums_kernel, columns.grid(splits), t.device,
        columns.x, t, mean, invstd, weight, bias, sums, along_xhat,
        columns.x.numel(), columns.width, each, columns.inner, columns.channels, columns.period, stride,
        MASKED=masked, DENSE=stride == columns.period, **columns.constants,
    )  # fmt: skip
    one, xhat = columns.totals()
    grid, constants = columns.per_channel
    launch(
        totals_kernel, grid, t.device,
        sums, along_xhat, one, xhat, columns.width, columns.inner, columns.channels, splits, **constants,
    )  # fmt: skip
    return one, xhat
