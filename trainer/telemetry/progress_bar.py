"""What a person sees of a long reading job: a bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import math
import sys
import time
from datetime import timedelta
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from dataloading.scan import Progress

_SECONDS_BETWEEN_LINES = 10.0


class ProgressBar:
    """A progress callback of dataloading's scans: one bar (or line now and then) for every `what`, with the time left.

    stream  stderr by default: standard output belongs to results
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._bar: Bar | None = None
        self._tasks: dict[str, TaskID] = {}
        self._printed = time.monotonic()

    def __call__(self, progress: Progress) -> None:
        if self._console.is_terminal:
            self._draw(progress)
        elif progress.done >= progress.total or time.monotonic() - self._printed > _SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            self._console.print(progress_line(progress), markup=False)

    def close(self) -> None:
        """Leave the last state on the screen and give the terminal back."""
        if self._bar:
            self._bar.stop()
            self._bar = None

    def _draw(self, progress: Progress) -> None:
        if self._bar is None:
            self._bar = Bar(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("images  {task.fields[rest]}"),
                console=self._console,
            )
            self._bar.start()
        if progress.what not in self._tasks:
            self._tasks[progress.what] = self._bar.add_task(progress.what, total=progress.total, rest="")
        self._bar.update(self._tasks[progress.what], completed=progress.done, rest=_rest(progress))


def progress_line(progress: Progress) -> str:
    """`packing  1,200 of 4,000 images  left 0:00:12`; at the end the time that it took."""
    return f"{progress.what}  {progress.done:,} of {progress.total:,} images  {_rest(progress)}"


def _rest(progress: Progress) -> str:
    if progress.done >= progress.total:
        return f"took {timedelta(seconds=round(progress.seconds))}"
    if math.isinf(progress.eta_seconds):
        return "left -"
    return f"left {timedelta(seconds=round(progress.eta_seconds))}"
