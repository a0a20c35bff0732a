"""What the loop leaves behind, however it ends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer.run import loop


def test_an_error_in_an_iteration_leaves_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    @contextmanager
    def iterating(state: Any) -> Iterator[Any]:
        seen.append("begun")
        try:
            yield diverges
        finally:
            seen.append("given back")

    def diverges(*_: Any) -> Any:
        raise FloatingPointError("a loss is not finite")

    monkeypatch.setattr(loop, "iterating", iterating)
    precision = SimpleNamespace(device=torch.device("cpu"), image_dtype=None, memory_format=None)
    state: Any = SimpleNamespace(
        progress=SimpleNamespace(iteration=0),
        config=SimpleNamespace(run=SimpleNamespace(log_every=1)),
        network=SimpleNamespace(precision=precision, module=SimpleNamespace(num_exits=2)),
    )
    batch = SimpleNamespace(normalized=lambda *_: None)
    loader: Any = SimpleNamespace(batches=lambda *_: iter([batch]))
    hooks: Any = None
    requests: Any = None
    with pytest.raises(FloatingPointError) as kept:
        loop.run_loop(state, loader, hooks, requests, 1)
    assert seen == ["begun", "given back"]
    assert kept.traceback, "which holds the loop's own variables"
