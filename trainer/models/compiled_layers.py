"""The layers of a net in training, written so that torch.compile makes fast code of them on a CPU.

Convolutions: oneDNN's gradients of weights are slow where there are fewer pixels than weights; matrix products over the
pixels are up to ten times as fast (a classifier's convolutions of ImageNet's net), for 1x1 kernels up to twice.

Max pool: the compiler's own backward pass scatters in float32, channels outermost; torch's is kept, as one operation.

Batch-norm: the compiler's own is one reduction over images and pixels. With the channels innermost in memory it takes
Welford's recursion channel group by channel group, and keeps the mean that its backward pass reads in the activations'
dtype. Here sums are taken image by image, all channels at a time, in float32; the images then run in parallel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

_FEW_PIXELS = 16  # of an output: at most so many are worth writing out every pixel that a kernel reads


def convolution(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """conv(x) for x [B, C, H, W]; square kernels with as much padding as keeps the size at stride 1."""
    return _convolved(x, conv.weight, conv.bias, conv.stride[0]) if _for_cpu(conv, x) else conv(x)


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int) -> Tensor:
    kernel = weight.shape[-1]
    if kernel == stride == 1 and channels_last(x):
        return _by_pixels(x.permute(0, 2, 3, 1), weight, bias)
    if few_pixels(x, stride):
        return _by_pixels(pixels_read(x, kernel, stride), weight, bias)
    return functional.conv2d(x, weight, bias, stride, kernel // 2)


def _by_pixels(pixels: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.linear(pixels, weight.permute(0, 2, 3, 1).flatten(1), bias).permute(0, 3, 1, 2)


def channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last)


def few_pixels(x: Tensor, stride: int) -> bool:
    """Whether what a convolution of x gives is so small that it pays to write out all that its kernel reads."""
    return -(-x.shape[2] // stride) * -(-x.shape[3] // stride) <= _FEW_PIXELS


def pixels_read(x: Tensor, kernel: int, stride: int) -> Tensor:
    """[B, H / stride, W / stride, kernel * kernel * C]: what each output of a convolution reads of x [B, C, H, W]."""
    pad = kernel // 2
    height, width = (-(-size // stride) for size in x.shape[2:])
    padded = functional.pad(x.permute(0, 2, 3, 1), (0, 0, pad, pad, pad, pad))
    rows, columns = stride * (height - 1) + 1, stride * (width - 1) + 1
    shifted = [padded[:, i : i + rows : stride, j : j + columns : stride] for i in range(kernel) for j in range(kernel)]
    return torch.cat(shifted, dim=3)


def max_pool(pool: nn.MaxPool2d, x: Tensor) -> Tensor:
    """pool(x) for x [B, C, H, W]."""
    if not _for_cpu(pool, x):
        return pool(x)
    return _max_pool(x, pool.kernel_size, pool.stride, pool.padding)[0]


@torch.library.custom_op("earlybird::max_pool", mutates_args=())
def _max_pool(x: Tensor, kernel: int, stride: int, padding: int) -> tuple[Tensor, Tensor]:
    return torch.ops.aten.max_pool2d_with_indices(x, [kernel], [stride], [padding])


@torch.library.custom_op("earlybird::max_pool_backward", mutates_args=())
def _max_pool_backward(dy: Tensor, x: Tensor, indices: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    return torch.ops.aten.max_pool2d_with_indices_backward(dy, x, [kernel], [stride], [padding], [1], False, indices)


_max_pool.register_fake(
    lambda x, kernel, stride, padding: torch.ops.aten.max_pool2d_with_indices(x, [kernel], [stride], [padding])
)
_max_pool_backward.register_fake(lambda dy, x, *_: torch.empty_like(x))


def _keep_windows(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, *ctx.window = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, output[1])


def _from_windows(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    return _max_pool_backward(dy, *ctx.saved_tensors, *ctx.window), None, None, None


_max_pool.register_autograd(_from_windows, setup_context=_keep_windows)


def norm_relu(norm: nn.Module, relu: nn.ReLU, x: Tensor) -> Tensor:
    """relu(norm(x)) for x [B, C, H, W]; running statistics move as in `norm`, which a folded net has no more."""
    count = x.numel() // x.shape[1]
    # One value has no variance: the norm itself says so.
    if not (isinstance(norm, nn.BatchNorm2d) and _for_cpu(norm, x) and count > 1):
        _keep(x)
        return relu(norm(x))
    y, mean, variance = _normed(x, norm.weight, norm.bias, norm.eps)
    _keep(x, mean, variance)
    if norm.track_running_stats:
        assert norm.momentum is not None
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        norm.num_batches_tracked.add_(1)
        norm.running_mean.lerp_(mean, norm.momentum)
        norm.running_var.lerp_(variance, norm.momentum)
    return y


NormInput = tuple[Tensor, ...]  # x [B, C, H, W] and, where the pass has them, its mean [C] and unbiased variance [C]
_norm_inputs: list[NormInput] | None = None


class KeepingNet(nn.Module):
    """A net for the compiler: (what `net` gives, what each batch-norm before a ReLU read, in the order they ran).

    The backward pass holds the latter anyway; given to whoever called, a tangent pass can follow this one.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Sequence[Tensor], list[NormInput]]:
        global _norm_inputs  # what the compiler's first pass can follow through all layers
        kept: list[NormInput] = []
        _norm_inputs = kept
        found = self.net(x)
        _norm_inputs = None
        return found, kept


def _keep(*read: Tensor) -> None:
    if _norm_inputs is not None:
        _norm_inputs.append(tuple(tensor.detach() for tensor in read))


@torch.compiler.allow_in_graph  # type: ignore[untyped-decorator]
def _normed(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    return _NormReLU.apply(x, weight, bias, eps)


# The compiler's first pass takes these as one call each; it would take ten seconds longer to read their lines for every
# layer. What a compiled graph that calls them is kept under: this file as it is.
_KEY = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
CACHE_KEYS = {f"{__name__}.{function.__name__}": _KEY for function in (_convolved, _normed)}


class _NormReLU(torch.autograd.Function):
    """(output like x, mean [C], unbiased variance [C]) of x, weight [C], bias [C].

    The compiler writes an expression of more than four tensors out where it is used twice, as large as the activations:
    hence `factor` and `offset`, which it would otherwise compute again, each from two tensors.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        count = x.numel() // x.shape[1]
        wide = x.to(weight.dtype)
        # One pass gives both moments; about a value of the channel's own they do not cancel.
        near = wide[:1, :, :1, :1]
        moved = wide - near
        first = moved.sum(dim=(2, 3)).sum(dim=0) / count
        second = (moved * moved).sum(dim=(2, 3)).sum(dim=0) / count
        variance = (second - first * first).clamp_min(0.0)
        mean = first + near.flatten()
        scale = torch.rsqrt(variance + eps)
        factor = scale * weight
        offset = bias - mean * factor
        ctx.save_for_backward(x, mean, scale, factor, offset)
        unbiased = variance * (count / (count - 1))
        ctx.mark_non_differentiable(mean, unbiased)
        return (wide * _spread(factor) + _spread(offset)).clamp_min(0.0).to(x.dtype), mean, unbiased

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, mean, scale, factor, offset = ctx.saved_tensors
        factor, offset = _written(factor), _written(offset)
        count = x.numel() // x.shape[1]
        wide = x.to(factor.dtype)
        passed = torch.where(wide * _spread(factor) + _spread(offset) > 0, dy.to(factor.dtype), 0.0)
        centred = wide - _spread(mean)
        d_bias = passed.sum(dim=(2, 3)).sum(dim=0)
        d_weight = (passed * centred).sum(dim=(2, 3)).sum(dim=0) * scale
        level, slope = d_bias / count, d_weight * scale / count
        dx = _spread(factor) * (passed - _spread(level) - centred * _spread(slope))
        return dx.to(x.dtype), d_weight, d_bias, None


def _for_cpu(layer: nn.Module, x: Tensor) -> bool:
    return torch.compiler.is_compiling() and layer.training and x.device.type == "cpu"


def _spread(values: Tensor) -> Tensor:
    """[C] beside [B, C, H, W]."""
    return values[:, None, None]


def _written(values: Tensor) -> Tensor:
    """The same values, in memory before they are used."""
    return values.as_strided(values.shape, values.stride())
