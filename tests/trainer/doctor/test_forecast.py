"""What a forecast measures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from trainer.doctor.forecast import _warm_up
from trainer.learning import graphs


@pytest.mark.parametrize(("num_ranks", "interval"), [(1, 1), (1, 6), (8, 6)])
def test_graphs_are_recorded_before_the_measured_iterations(
    monkeypatch: pytest.MonkeyPatch, num_ranks: int, interval: int
) -> None:
    monkeypatch.setattr(graphs, "world_size", lambda: num_ranks)
    precision = SimpleNamespace(cuda_graphs=True)
    state: Any = SimpleNamespace(
        network=SimpleNamespace(precision=precision), config=SimpleNamespace(meta=SimpleNamespace(interval=interval))
    )
    done = _warm_up(state)
    with_meta = len(range(0, done, interval))
    needed = (graphs.WARM_UP if num_ranks == 1 else graphs.WARM_UP_RANKS) + 1
    assert with_meta >= needed
    assert interval == 1 or done - with_meta >= needed
    precision.cuda_graphs = False
    assert _warm_up(state) == 3
