from __future__ import annotations

import io
from typing import Any

from rich.console import Console

from trainer.telemetry import console as module
from trainer.telemetry.console import Pace, RunConsole

ROW: dict[str, Any] = {
    "iteration": 120,
    "epoch": 2.666,
    "learning_rate": 0.0998,
    "loss": [2.31, 2.1],
    "top1": [0.312, 0.35],
    "meta_loss": 1.92,
    "num_iterations": 10,
    "seconds": 5.0,
    "data_wait_seconds": 0.05,
    "images_per_second": 840.4,
}
EVALUATION: dict[str, Any] = {
    "iteration": 120,
    "split": "val",
    "exits": [
        {"exit": 1, "top1": 30.5, "top5": 60.0, "loss": 2.0, "num_images": 1000},
        {"exit": 2, "top1": 40.0, "top5": 70.0, "loss": 1.5, "num_images": 1000},
    ],
}


def test_plain_lines_have_a_stable_form() -> None:
    stream = io.StringIO()
    console = RunConsole("demo", 450, 10, stream)
    console.start({"iteration": 110})
    console.train(ROW)
    console.train({**ROW, "meta_loss": None})
    console.evaluation(EVALUATION)
    console.close()
    line = (
        "train  iteration 120/450  epoch 2.67/10  images/s 840  wait 1.0%  lr 0.0998  loss 2.310 2.100  top-1 31.2 35.0"
    )
    assert stream.getvalue().splitlines() == [
        "goes on after iteration 110",
        f"{line}  meta 1.920  left 0:02:45",
        f"{line}  left 0:02:45",
        "eval  iteration 120  split val  images 1000  top-1 30.50 40.00  top-5 60.00 70.00  loss 2.000 1.500",
    ]


def test_a_terminal_gets_a_bar_and_a_table_of_the_exits(monkeypatch: Any) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(
        module, "Console", lambda **_: Console(file=stream, force_terminal=True, width=120, color_system=None)
    )
    console = RunConsole("demo", 450, 10, stream)
    console.train(ROW)
    console.line("a checkpoint [was] written")
    console.evaluation(EVALUATION)
    console.close()
    shown = stream.getvalue()
    for part in ("120/450", "epoch 2.67/10", "840 images/s", "left 0:02:45", "31.20", "val top-1 %", "40.00", "[was]"):
        assert part in shown, part


def test_pace_follows_the_newest_windows() -> None:
    pace = Pace()
    assert pace.left(100) == "-"
    pace.add(100.0, 1)
    for _ in range(30):
        pace.add(10.0, 10)
    assert pace.left(60) == "0:01:00"
    assert pace.left(-5) == "0:00:00"
