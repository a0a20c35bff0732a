"""Host memory that is used again as soon as nobody holds it."""

from __future__ import annotations

import math
import sys

import numpy as np
import torch
from torch import Tensor


class Buffers:
    """Uninitialised CPU tensors out of a small store: a buffer goes out again when the last view of it is gone.

    Fresh pages cost more than what is written into them: 0.2 ms for 600 kB.
    """

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """[shape] of `dtype`, contiguous. It stays yours for as long as it, or any view of it, is alive."""
        num_bytes = math.prod(shape) * dtype.itemsize
        # 2: the list's reference and getrefcount's own. A tensor of the array, or a view of that, holds a third.
        idle = [i for i in range(len(self._arrays)) if sys.getrefcount(self._arrays[i]) == 2]
        fitting = next((i for i in idle if self._arrays[i].nbytes == num_bytes), None)
        if fitting is None:
            self._arrays = [array for i, array in enumerate(self._arrays) if i not in idle]  # of other batch sizes
            fitting = len(self._arrays)
            self._arrays.append(np.empty(num_bytes, np.uint8))
        return torch.from_numpy(self._arrays[fitting]).view(dtype).view(shape)
