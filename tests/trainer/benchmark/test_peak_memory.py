"""Which of the allocator's numbers is the peak, with CUDA graphs and without."""

from __future__ import annotations

import pytest
import torch

from trainer.benchmark.peak_memory import peak_bytes


def test_replays_use_memory_that_nobody_is_handed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 1)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 5)
    gpu = torch.device("cuda", 0)
    assert peak_bytes(gpu, cuda_graphs=False) == 1
    assert peak_bytes(gpu, cuda_graphs=True) == 5
