from __future__ import annotations

import pytest

from trainer.run.interval import Due, Interval


@pytest.mark.parametrize(
    ("text", "count", "unit"),
    [("1epoch", 1, "epoch"), ("2 epochs", 2, "epoch"), ("500steps", 500, "step"), ("10min", 10, "min"), ("1h", 1, "h")],
)
def test_reads_a_count_and_a_unit(text: str, count: int, unit: str) -> None:
    assert Interval.parse(text, "checkpoint.every") == Interval(count, unit)


@pytest.mark.parametrize("text", ["", "epoch", "0steps", "-1epoch", "1.5epochs", "10 minutes", "10m", "1epoch 5min"])
def test_refuses_what_it_cannot_read(text: str) -> None:
    with pytest.raises(ValueError, match=r"checkpoint\.every is .* for example 1epoch, 500steps or 10min"):
        Interval.parse(text, "checkpoint.every")


def test_steps_and_epochs_count_from_the_run_start() -> None:
    steps = Due(Interval(3, "step"))
    assert [i for i in range(1, 10) if steps.after(i, None)] == [3, 6, 9]
    resumed = Due(Interval(3, "step"))
    assert [i for i in range(5, 10) if resumed.after(i, None)] == [6, 9]
    epochs = Due(Interval(2, "epoch"))
    ends = [(9, None), (10, 1), (20, 2), (30, 3), (40, 4)]
    assert [end for end in ends if epochs.after(*end)] == [(20, 2), (40, 4)]


def test_time_counts_from_the_last_restart() -> None:
    now = 100.0
    due = Due(Interval(2, "min"), clock=lambda: now)
    now = 219.0
    assert not due.after(7, None)
    now = 220.0
    assert due.after(8, None)
    assert due.after(9, None), "stays due until it is done"
    due.restart()
    assert not due.after(10, None)
    now = 340.0
    assert due.after(11, None)
