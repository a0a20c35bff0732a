"""The lookahead step over all parameters in one Triton launch: 12 bytes read and 4 written per parameter.

Each tensor is cut into chunks of 1024 values; a program looks its chunk's addresses up in a table. The table of 4
addresses per tensor is uploaded per call (12 KB for 400 tensors, asynchronously from pinned memory); the list of chunks
depends on the sizes alone and stays on the device.
"""

# ruff: noqa: N803 - what is compiled in is upper case, as in Triton's own kernels
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import launch

BLOCK = 1024


@triton.jit
def address(addresses, i):
    # Every tensor starts at a multiple of 16 bytes (the caller sees to it), which allows loads of four values.
    return tl.multiple_of(tl.load(addresses + i).to(tl.pointer_type(tl.float32)), 16)


@triton.jit(do_not_specialize=["num_tensors"])
def lookahead_kernel(
    addresses, sizes, chunks, num_tensors, lr, momentum, weight_decay, dampening,
    LR_ON_DEVICE: tl.constexpr, MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tensor = tl.load(chunks + 2 * tl.program_id(0))
    start = tl.load(chunks + 2 * tl.program_id(0) + 1).to(tl.int64) * BLOCK
    param = address(addresses, tensor) + start
    grad = address(addresses, num_tensors + tensor) + start
    buffer = address(addresses, 2 * num_tensors + tensor) + start
    out = address(addresses, 3 * num_tensors + tensor) + start
    has_buffer = tl.load(addresses + 2 * num_tensors + tensor) != 0  # address 0: no buffer yet, m = d
    rate = lr
    if LR_ON_DEVICE:
        rate = tl.load(lr).to(tl.float32)
    index = tl.arange(0, BLOCK)
    left = tl.load(sizes + tensor) - start
    if left >= BLOCK:  # a mask whose bound is unknown would make every load 4 bytes wide
        advance(param, grad, buffer, out, index, None, has_buffer,
                rate, momentum, weight_decay, dampening, MOMENTUM, NESTEROV)  # fmt: skip
    else:
        advance(param, grad, buffer, out, index, index < left, has_buffer,
                rate, momentum, weight_decay, dampening, MOMENTUM, NESTEROV)  # fmt: skip


@triton.jit
def advance(
    param, grad, buffer, out, index, inside, has_buffer, lr, momentum, weight_decay, dampening,
    MOMENTUM: tl.constexpr, NESTEROV: tl.constexpr,
):  # fmt: skip
    theta = tl.load(param + index, mask=inside)
    direction = tl.load(grad + index, mask=inside) + weight_decay * theta
    step = direction
    if MOMENTUM:
        if has_buffer:
            step = momentum * tl.load(buffer + index, mask=inside) + (1 - dampening) * direction
        if NESTEROV:
            step = direction + momentum * step
    tl.store(out + index, theta - lr * step, mask=inside)


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
    """Fused form of reference.lookahead for float32 tensors without a gradient through the step."""
    device = params[0].device
    with torch.no_grad():
        params = [
            p.detach() if _aligned(p) else p.detach().clone(memory_format=torch.contiguous_format) for p in params
        ]
        outs = [torch.empty_like(p) for p in params]
        grads = [_laid_out_as(g, p) for g, p in zip(grads, params, strict=True)]
        buffers = [None if b is None else _laid_out_as(b, p) for b, p in zip(momentum_buffers, params, strict=True)]
    addresses = [t.data_ptr() for t in [*params, *grads]]
    addresses += [0 if b is None else b.data_ptr() for b in buffers]
    addresses += [t.data_ptr() for t in outs]
    table = torch.tensor(addresses, dtype=torch.int64, pin_memory=device.type == "cuda").to(device, non_blocking=True)
    sizes, chunks = _chunks(tuple(p.numel() for p in params), device)
    if isinstance(lr, Tensor) and lr.device != device:
        lr = float(lr)  # a number of the host: nothing to wait for
    launch(
        lookahead_kernel, (len(chunks),), device,
        table, sizes, chunks, len(params), lr, float(momentum), float(weight_decay), float(dampening),
        LR_ON_DEVICE=isinstance(lr, Tensor), MOMENTUM=momentum != 0, NESTEROV=nesterov, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return outs


def _aligned(t: Tensor) -> bool:
    dense = t.is_contiguous() or t.is_contiguous(memory_format=torch.channels_last)
    return dense and t.data_ptr() % 16 == 0


def _laid_out_as(t: Tensor, model: Tensor) -> Tensor:
    """`t` in the memory order of `model`, 16-byte aligned; a copy only where it is not so already.

    Strides of dimensions of size 1 say nothing: a 1x1 convolution's gradient may differ in them alone."""
    orders = (torch.contiguous_format, torch.channels_last)
    same = any(t.is_contiguous(memory_format=o) and model.is_contiguous(memory_format=o) for o in orders)
    return t if same and t.data_ptr() % 16 == 0 else torch.empty_like(model).copy_(t)


@functools.lru_cache(maxsize=8)
def _chunks(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """[T] sizes and [num_chunks, 2] (tensor, number of the chunk in it), uploaded once per list of sizes."""
    rows = [(i, chunk) for i, size in enumerate(sizes) for chunk in range(triton.cdiv(size, BLOCK))]
    chunks = torch.tensor(rows, dtype=torch.int32, device=device).reshape(len(rows), 2)
    return torch.tensor(sizes, dtype=torch.int64, device=device), chunks
