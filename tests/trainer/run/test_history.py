"""What a start that goes on knows of the run before it."""

from __future__ import annotations

from typing import Any

from trainer.run.history import History


def trained(iteration: int) -> dict[str, Any]:
    return {"event": "train", "iteration": iteration, "images": 40, "seconds": 2.0}


def evaluated(iteration: int, top1: float) -> dict[str, Any]:
    return {"event": "eval", "iteration": iteration, "exits": [{"exit": 1, "top1": 1.0}, {"exit": 2, "top1": top1}]}


ROWS = [
    {"event": "start", "iteration": 0},
    trained(10),
    evaluated(10, 30.004),
    {"event": "best checkpoint", "iteration": 10, "top1": 30.0},
    trained(20),
    evaluated(20, 50.0),  # its checkpoint could not be kept
    trained(30),
    {"event": "unreadable images left out", "number": 1},
    # killed; back from iteration 20
    {"event": "start", "iteration": 20},
    trained(30),
    evaluated(30, 40.0),
    {"event": "best checkpoint", "iteration": 30, "top1": 40.0},
]


def test_counts_what_still_holds_until_an_iteration() -> None:
    assert History.until([], 5) == History()
    whole = History.until(ROWS, 30)
    assert (whole.images, whole.seconds, whole.images_per_second) == (120, 6.0, 20.0)
    assert (whole.evaluated_at, whole.scores[-1]["top1"], whole.best) == (30, 40.0, 40.0)
    before = History.until(ROWS, 29)
    assert (before.images, before.seconds) == (80, 4.0)
    assert (before.evaluated_at, before.scores[-1]["top1"]) == (20, 50.0)
    assert before.best == 30.004, "a checkpoint that was not kept is not the best one"


def test_the_best_is_of_the_checkpoint_that_is_kept() -> None:
    torn = [row for row in ROWS if row["event"] != "eval"]
    assert (History.until(torn, 20).best, History.until(torn, 20).evaluated_at) == (30.0, -1)
