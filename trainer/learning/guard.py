"""An update that is not finite moves nothing: decided on the device, alike on every rank, without waiting for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_REMEMBERED = 256  # halves whose losses are held until the next reading
_NAMED = 8  # images of a culprit that are listed


@dataclass(frozen=True)
class Culprit:
    """Where losses of one rank were not finite: the exits (counted from 1), the images' ids, and how many there are."""

    rank: int
    iteration: int
    exits: tuple[int, ...]
    images: tuple[int, ...]
    num_images: int

    def __str__(self) -> str:
        exits = ", ".join(map(str, self.exits))
        more = f" and {self.num_images - len(self.images)} more" if self.num_images > len(self.images) else ""
        images = ", ".join(map(str, self.images))
        return f"rank {self.rank}, iteration {self.iteration}, exits {exits}, images {images}{more}"


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
        self._seen: deque[tuple[int, np.ndarray, Tensor]] = deque(maxlen=_REMEMBERED)

    def saw(self, iteration: int, ids: np.ndarray, losses: Tensor) -> None:
        """A half of images `ids` [n] had these losses [n, K]: kept on the device until the next reading."""
        self._seen.append((iteration, ids, losses.detach()))

    def culprit(self, rank: int) -> Culprit | None:
        """The first half since the last reading with a loss that is not finite on this rank; waits for the device."""
        for iteration, ids, losses in self._seen:
            bad = ~losses.isfinite().cpu().numpy()
            if bad.any():
                images = ids[bad.any(axis=1)]
                exits = tuple(int(k) + 1 for k in np.flatnonzero(bad.any(axis=0)))
                return Culprit(rank, iteration, exits, tuple(int(i) for i in images[:_NAMED]), len(images))
        return None

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
        self._counts.copy_(torch.stack([left_out + ~finite, row, torch.maximum(most, row)]))
        if self._kept:
            choose(finite, self._statistics, self._kept)
        return finite

    def read(self) -> tuple[int, int]:
        """(updates left out, most of them in a row) since the last reading. Waits for the device.

        Where there were any, `culprit` can be asked until `forget_losses`."""
        left_out, in_a_row, most = self._counts.tolist()
        self._counts.copy_(torch.tensor([0, in_a_row, in_a_row]))
        return left_out, most

    def forget(self) -> None:
        """The state was replaced by another one."""
        self._counts.zero_()
        self._seen.clear()

    def forget_losses(self) -> None:
        """The window that was read is over."""
        self._seen.clear()


def choose(finite: Tensor, tensors: Sequence[Tensor], otherwise: Sequence[Tensor]) -> None:
    """Leave `tensors` as they are where the device scalar `finite` is true, else make them those of `otherwise`."""
    flat = torch.where(finite, _flat(tensors), _flat(otherwise))
    parts = flat.split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_(list(tensors), [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)])


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])
