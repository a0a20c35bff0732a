"""Where a run's wall time went: what trained the net, and what did not, by cause."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

CAUSES = ("start", "compile", "data_wait", "evaluation", "checkpoint", "lost_work", "recovery")
RESTS = ("completed", "stopped")  # status of an end that was meant


class Goodput:
    """Follows the rows of a run's log, live or read back: both give the same account, over all restarts.

    start       from a process's start to its first iteration
    compile     what the first window took longer than the second one's pace: compilation, caches that fill
    data_wait   waiting for the loader
    evaluation, checkpoint  as their rows say
    lost_work   training time of iterations that a restart had to do again
    recovery    between the last row of a process and the start of the next

    A run that was completed, or stopped where it should, is no part of the account until somebody starts it again.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = ()) -> None:
        self.badput = dict.fromkeys(CAUSES, 0.0)
        self._windows: list[tuple[int, float]] = []  # (iteration at its end, productive seconds)
        self._lost = 0.0
        self._last_time: float | None = None
        self._rests = False  # by its own word nothing is left to do
        self._starting_since: float | None = None
        self._first: tuple[float, int] | None = None  # seconds and iterations of this process's first window
        for row in rows:
            self.follow(row)

    @property
    def productive_seconds(self) -> float:
        return sum(seconds for _, seconds in self._windows)

    @property
    def ratio(self) -> float | None:
        """Productive over all time accounted for; None before the first row that says anything."""
        total = self.productive_seconds + sum(self.badput.values())
        return self.productive_seconds / total if total > 0 else None

    def follow(self, row: Mapping[str, Any]) -> None:
        """Account for one row: an event with its Unix `time`, its `iteration` and the `seconds` it took."""
        event = row["event"]
        if event == "start":
            self._start(row)
        elif event == "train":
            self._train(row)
        elif event in ("eval", "checkpoint"):
            self.badput["evaluation" if event == "eval" else "checkpoint"] += row.get("seconds") or 0.0
            if self._starting_since is not None:  # an evaluation before the first iteration is not part of the start
                self._starting_since += row.get("seconds") or 0.0
        self._last_time, self._rests = row["time"], event == "end" and row.get("status") in RESTS

    def _start(self, row: Mapping[str, Any]) -> None:
        began = row.get("process_began", row["time"])
        if self._last_time is not None and not self._rests:
            self.badput["recovery"] += max(0.0, began - self._last_time)
        redone = sum(seconds for iteration, seconds in self._windows if iteration > row["iteration"])
        self.badput["lost_work"] += redone
        self._windows = [window for window in self._windows if window[0] <= row["iteration"]]
        # A process may have begun before the last row: its clock is another node's, or it waited for its turn.
        self._starting_since, self._first = max(began, self._last_time or began), None

    def _train(self, row: Mapping[str, Any]) -> None:
        seconds, wait = row["seconds"], min(row["data_wait_seconds"], row["seconds"])
        if self._starting_since is not None:
            self.badput["start"] += max(0.0, row["time"] - seconds - self._starting_since)
            self._starting_since = None
            self._first = (seconds - wait, row["num_iterations"])
        elif self._first is not None and row["num_iterations"]:
            took, iterations = self._first
            excess = max(0.0, took - (seconds - wait) / row["num_iterations"] * iterations)
            iteration, productive = self._windows[-1]
            excess = min(excess, productive)
            self._windows[-1] = (iteration, productive - excess)
            self.badput["compile"] += excess
            self._first = None
        self.badput["data_wait"] += wait
        self._windows.append((row["iteration"], seconds - wait))
