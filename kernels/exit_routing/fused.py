"""The sequential routing rule in one Triton program, exact including ties, without a sort.

Confidence and index are packed into one integer key, so that all keys differ and a larger key means "goes first".
Per exit the quota-th largest key among the samples still there is found bit by bit: 32 + log2(n) counts over keys that
stay in registers. One launch, against six or so per exit for the sorts of the reference.
"""

# ruff: noqa: N803 - what is compiled in is upper case, as in Triton's own kernels
# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.launch import launch


@triton.jit(do_not_specialize=["num_samples"])
def route_kernel(
    confidences, exit_of_sample, quotas, num_samples,
    K: tl.constexpr, BLOCK: tl.constexpr, INDEX_BITS: tl.constexpr,
):  # fmt: skip
    LARGEST: tl.constexpr = 3.4028234663852886e38
    index = tl.arange(0, BLOCK)
    free = index < num_samples
    exits = tl.full((BLOCK,), K - 1, tl.int64)
    for k in tl.static_range(K - 1):
        c = tl.load(confidences + index * K + k, mask=free, other=0.0).to(tl.float32)
        c = tl.where(c == c, tl.minimum(tl.maximum(c, -LARGEST), LARGEST), -LARGEST)
        bits = tl.where(c == 0, 0.0, c).to(tl.int32, bitcast=True)  # -0.0 and 0.0 are equal, their bits are not
        # As unsigned numbers the bits of floats grow with the float, once negative ones are inverted.
        ordered = tl.where(bits < 0, ~bits, bits ^ -2147483648).to(tl.uint32, bitcast=True)
        keys = (ordered.to(tl.int64) << INDEX_BITS) | (BLOCK - 1 - index).to(tl.int64)
        keys = tl.where(free, keys, -1)
        least = tl.full((), 0, tl.int64)
        for step in range(32 + INDEX_BITS):
            candidate = least | (tl.full((), 1, tl.int64) << (31 + INDEX_BITS - step))
            enough = tl.sum((keys >= candidate).to(tl.int32), 0) >= quotas[k]
            least = tl.where(enough, candidate, least)
        chosen = (keys >= least) & (quotas[k] > 0)
        exits = tl.where(chosen, k, exits)
        free = free & (chosen == 0)
    tl.store(exit_of_sample + index, exits, mask=index < num_samples)


def route(confidences: Tensor, quotas: Sequence[int]) -> Tensor:
    """Fused form of reference.route for up to 8,192 samples."""
    n, num_exits = confidences.shape
    exit_of_sample = torch.empty(n, dtype=torch.int64, device=confidences.device)
    block = max(32, triton.next_power_of_2(n))
    launch(
        route_kernel, (min(n, 1),), confidences.device,
        confidences.detach().contiguous(), exit_of_sample, tuple(quotas), n,
        K=num_exits, BLOCK=block, INDEX_BITS=block.bit_length() - 1,
        num_warps=max(1, min(16, block // 256)),  # 8 keys a thread, 16 at most
    )  # fmt: skip
    return exit_of_sample
