"""Batch-norm in batch statistics and ReLU as one operation: forward, backward and tangent rule."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from kernels.backend import Backend, Choice, asked, backend_for
from kernels.norm_relu import reference
from kernels.norm_relu.reference import NormReLU, Running

__all__ = ["NormReLU", "Running", "norm_relu", "norm_relu_backend", "norm_relu_jvp"]

FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Below so many values launching takes longer than the kernels save: two passes of 32 MB, against one more launch and
# Python in the place of C++ for each of them.
WORTHWHILE = 2**24
TOO_MANY = 2**34  # their rows would not be counted in 32 bits


def norm_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    running: Running | None = None,
    backend: Choice = "auto",
) -> NormReLU:
    """relu((x - mean) / sqrt(variance + eps) * weight + bias), the moments those of the batch, by channel.

    x             [N, C, H, W] floating, channels-last or contiguous; at least 2 values a channel
    weight, bias  [C]
    running       moved as torch.nn.BatchNorm2d moves them; None leaves running statistics alone
    backend       see norm_relu_backend
    Raises ValueError for shapes that do not fit.
    """
    _check(x, weight, bias)
    if norm_relu_backend(x, weight, backend) == "reference":
        return reference.norm_relu(x, weight, bias, eps, running)
    import kernels.norm_relu.fused as fused  # importing kernels must not need triton

    return fused.norm_relu(x, weight, bias, eps, running)


def norm_relu_jvp(
    x: Tensor,
    tangent: Tensor,
    mean: Tensor,
    invstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    weight_tangent: Tensor,
    bias_tangent: Tensor,
    backend: Choice = "auto",
) -> Tensor:
    """Derivative of y like x, along tangents of x and of both parameters; mean and invstd as norm_relu gave them."""
    _check(x, weight, bias)
    if tangent.shape != x.shape or weight_tangent.shape != weight.shape or bias_tangent.shape != bias.shape:
        raise ValueError(
            f"tangents are {[list(t.shape) for t in (tangent, weight_tangent, bias_tangent)]}; "
            f"give one each of {[list(t.shape) for t in (x, weight, bias)]}"
        )
    if norm_relu_backend(x, weight, backend) == "reference":
        return reference.norm_relu_jvp(x, tangent, mean, invstd, weight, bias, weight_tangent, bias_tangent)
    import kernels.norm_relu.fused as fused

    return fused.norm_relu_jvp(x, tangent, mean, invstd, weight, bias, weight_tangent, bias_tangent)


def norm_relu_backend(x: Tensor, weight: Tensor, backend: Choice = "auto") -> Backend:
    """Which implementation such a call gets. The fused kernels take float32, bfloat16 and float16 with float32
    parameters; auto takes them from 2**24 values on."""
    if backend == "auto":
        backend = asked("norm_relu")
    count = x.numel()
    return _decided(x.device, x.dtype, weight.dtype, count < WORTHWHILE, count >= TOO_MANY, backend)


@functools.cache
def _decided(
    device: torch.device, dtype: torch.dtype, parameters: torch.dtype, few: bool, too_many: bool, backend: Choice
) -> Backend:
    """Kept, since every layer of every pass asks."""
    unfit = f"{TOO_MANY:,} values or more" if too_many else ""
    if parameters != torch.float32:
        unfit = f"{parameters} parameters"
    if dtype not in FUSED_DTYPES:
        unfit = f"{dtype} activations"
    slower = f"launches cost more than is saved below {WORTHWHILE:,} values" if few else ""
    return backend_for("norm_relu", device, backend, unfit, slower)


def _check(x: Tensor, weight: Tensor, bias: Tensor) -> None:
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(f"x is {x.dtype} {list(x.shape)}; give floating [N, C, H, W]")
    channels = x.shape[1]
    if weight.shape != (channels,) or bias.shape != (channels,):
        raise ValueError(f"weight {list(weight.shape)}, bias {list(bias.shape)}; give [{channels}], one a channel")
    if x.numel() < 2 * channels:
        raise ValueError(f"x is {list(x.shape)}; one value a channel has no variance, give at least 2")
