from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.telemetry.goodput import Goodput


def _train(time: float, iteration: int, seconds: float, wait: float = 0.0) -> dict[str, Any]:
    window = {"seconds": seconds, "data_wait_seconds": wait, "num_iterations": 10}
    return {"event": "train", "time": time, "iteration": iteration, **window}


def _start(time: float, iteration: int, began: float) -> dict[str, Any]:
    return {"event": "start", "time": time, "iteration": iteration, "process_began": began}


STORY = [
    _start(105, 0, began=100),
    _train(130, 10, 20.0),  # began at 110: start 10; 14 more than the next one's pace: compilation
    _train(138, 20, 8.0, wait=2.0),
    {"event": "eval", "time": 143, "iteration": 20, "seconds": 5.0},
    {"event": "checkpoint", "time": 144, "iteration": 20, "seconds": 1.0},
    _train(150, 30, 6.0),
    # killed; back after 50 s from iteration 20
    _start(203, 20, began=200),
    _train(214, 30, 10.0),
    _train(220, 40, 6.0),
]


def test_every_second_has_one_cause() -> None:
    account = Goodput(STORY)
    assert account.badput == {
        "start": 10 + 4,
        "compile": 14 + 4,
        "data_wait": 2,
        "evaluation": 5,
        "checkpoint": 1,
        "lost_work": 6,
        "recovery": 50,
    }
    assert account.productive_seconds == 6 + 6 + 6 + 6
    assert account.productive_seconds + sum(account.badput.values()) == 220 - 100
    assert account.ratio == pytest.approx(24 / 120)


def test_nothing_said_is_no_ratio() -> None:
    assert Goodput().ratio is None
    assert Goodput([{"event": "bad_image", "time": 1.0}]).ratio is None


def test_an_evaluation_before_the_first_iteration_is_not_part_of_the_start() -> None:
    evaluation = {"event": "eval", "time": 19, "iteration": 0, "seconds": 6.0}
    account = Goodput([_start(5, 0, began=0), evaluation, _train(40, 10, 20.0)])
    assert (account.badput["start"], account.badput["evaluation"], account.productive_seconds) == (14, 6, 20)


def test_a_clock_that_is_behind_counts_no_second_twice() -> None:
    """The next process is another node's: it says it began before the last row was written."""
    account = Goodput([_start(5, 0, began=0), _train(30, 10, 20.0), _start(40, 10, began=25), _train(50, 20, 8.0)])
    assert account.productive_seconds + sum(account.badput.values()) == 50
    assert (account.badput["recovery"], account.badput["start"]) == (0, 10 + 12)


@pytest.mark.parametrize(("status", "recovery"), [("stopped", 0), ("completed", 0), ("preempted", 60), ("failed", 60)])
def test_a_run_that_rests_does_not_recover(status: str, recovery: float) -> None:
    end = {"event": "end", "time": 40, "iteration": 10, "status": status}
    account = Goodput([_start(5, 0, began=0), _train(40, 10, 20.0), end, _start(102, 10, began=100)])
    account.follow(_train(130, 20, 20.0))
    assert account.badput["recovery"] == recovery
    assert account.productive_seconds + sum(account.badput.values()) == 130 - 60 + recovery


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 1), st.booleans()), min_size=1, max_size=20))
def test_the_account_never_loses_or_invents_time(windows: list[tuple[float, float, bool]]) -> None:
    account, now, iteration = Goodput([_start(0.0, 0, began=0.0)]), 0.0, 0
    for seconds, wait, restart in windows:
        now, iteration = now + seconds, iteration + 10
        account.follow(_train(now, iteration, seconds, wait * seconds))
        if restart:
            iteration = max(0, iteration - 20)
            account.follow(_start(now, iteration, began=now))
    assert account.productive_seconds + sum(account.badput.values()) == pytest.approx(now, abs=1e-6)
    assert account.productive_seconds >= -1e-9
    assert min(account.badput.values()) >= 0
