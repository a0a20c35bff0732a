"""What a log step tells of all ranks."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from trainer.run.distributed import Ranks
from trainer.run.health import STRAGGLER_TIMES, Signs
from trainer.run.interval import Interval
from trainer.run.log_step import LogSteps
from trainer.telemetry.window import Own, Reading


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_nobody_is_called_slow_by_a_clock_that_saw_no_waiting(
    monkeypatch: pytest.MonkeyPatch, cuda_graphs: bool
) -> None:
    """Rank 1 takes thrice as long for its own work; in replays all ranks seem to work all the time."""
    rows: list[dict[str, Any]] = []
    events: list[str] = []
    telemetry: Any = SimpleNamespace(
        train=lambda row, own: rows.append(row), event=lambda name, **_: events.append(name), bad_image=None
    )
    monkeypatch.setattr(Ranks, "gather", lambda self, items: [items[0], (3.0, []), (1.0, [])])
    images: Any = SimpleNamespace(train=range(64))
    watchdog: Any = SimpleNamespace(stalls=list)
    steps = LogSteps(images, Ranks(0, 3, 0, 3, torch.device("cpu")), telemetry, watchdog, Signs(None))
    state: Any = SimpleNamespace(
        progress=SimpleNamespace(iteration=1),
        config=SimpleNamespace(optim=SimpleNamespace(update_batch=8)),
        lr=0.1,
        weight_net_lr=None,
        network=SimpleNamespace(precision=SimpleNamespace(cuda_graphs=cuda_graphs)),
    )
    reading = Reading([1.0], [0.5], None, None, None, None, 16, 1, 1.0, 0.0, None, 0, Own(8, [1.0], 0.0))
    for _ in range(STRAGGLER_TIMES):
        steps.log(state, reading, Interval.parse("2steps", "checkpoint.every"))
    assert all(row["straggler_scores"] == (None if cuda_graphs else [1.0, 3.0, 1.0]) for row in rows)
    assert events == ([] if cuda_graphs else ["straggler"])
