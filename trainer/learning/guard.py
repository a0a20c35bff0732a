"""An update that is not finite moves nothing: decided on the device, alike on every rank, without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Guard:
    """Knows of every update whether its gradient was finite, and keeps what it would have spoilt.

    A gradient is reduced over ranks before it is asked about, and a sum with a NaN in it is NaN: all ranks answer
    alike without a message of their own. Running batch-norm statistics moved in the forward pass already: they are
    put back to what `keep` saw.
    """

    def __init__(self, buffers: Sequence[Tensor], device: torch.device) -> None:
        """buffers  of the net; those that are no floating-point numbers (counters) are left alone"""
        self._statistics = [buffer for buffer in buffers if buffer.is_floating_point()]
        self._kept: list[Tensor] | None = None
        # updates left out since the last reading; in a row up to now; most in a row since the last reading
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)

    def keep(self) -> None:
        """Remember the running statistics; call before the forward pass of every half."""
        if self._kept is None:
            self._kept = [torch.empty_like(buffer) for buffer in self._statistics]
        if self._kept:
            torch._foreach_copy_(self._kept, self._statistics)

    def finite(self, gradients: Sequence[Tensor]) -> Tensor:
        """Whether all are finite, a bool scalar on the device; counts, and puts the statistics back where not."""
        # A norm is NaN or infinite where one of its numbers is (and where it would pass 1e19: as good as infinite).
        # On a CPU this is the fastest way to ask, 2 to 7 times faster than the largest magnitude.
        finite = torch.stack(torch._foreach_norm(list(gradients))).isfinite().all()
        left_out, in_a_row, most = self._counts.unbind()
        row = torch.where(finite, 0, in_a_row + 1)
        self._counts = torch.stack([left_out + ~finite, row, torch.maximum(most, row)])
        if self._kept:
            choose(finite, self._statistics, self._kept)
        return finite

    def read(self) -> tuple[int, int]:
        """(updates left out, most of them in a row) since the last reading. Waits for the device."""
        left_out, in_a_row, most = self._counts.tolist()
        self._counts = torch.tensor([0, in_a_row, in_a_row], device=self._counts.device)
        return left_out, most

    def forget(self) -> None:
        """The state was replaced by another one."""
        self._counts = torch.zeros_like(self._counts)


def choose(finite: Tensor, tensors: Sequence[Tensor], otherwise: Sequence[Tensor]) -> None:
    """Leave `tensors` as they are where the device scalar `finite` is true, else make them those of `otherwise`."""
    flat = torch.where(finite, _flat(tensors), _flat(otherwise))
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)])


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
