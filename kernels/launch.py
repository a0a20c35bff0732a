"""One way to launch a Triton kernel."""

from __future__ import annotations

from typing import Any

import torch


def launch(kernel: Any, grid: tuple[int, ...], device: torch.device, *arguments: Any, **constants: Any) -> None:
    """Runs `kernel` on `device`, where the tensors are, with its compile-time constants and num_warps by name."""
    if 0 in grid:
        return  # no samples: nothing to run, and CUDA refuses an empty grid
    # Triton launches on the current GPU, which need not be the tensors' own; -1 changes nothing.
    with torch.cuda.device(device if device.type == "cuda" else -1):
        kernel[grid](*arguments, **constants)
