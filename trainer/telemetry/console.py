"""What a person sees of a run: a live bar on a terminal, plain lines anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

Row = Mapping[str, Any]


class RunConsole:
    """Follows a run's rows (see Telemetry). On a terminal: a bar with speed, time left and a table of the exits, drawn
    anew in its place. Elsewhere: one line a row, in a fixed order of `name value` fields, two spaces apart.

    stream  stderr by default: standard output belongs to results
    """

    def __init__(self, title: str, num_iterations: int, num_epochs: int, stream: TextIO | None = None) -> None:
        self._num_iterations, self._num_epochs = num_iterations, num_epochs
        self._console = Console(file=stream or sys.stderr, highlight=False, soft_wrap=True)
        self._pace = Pace()
        self._live: _Live | None = None
        if self._console.is_terminal:
            self._live = _Live(self._console, title, num_iterations, num_epochs)

    def start(self, row: Row) -> None:
        if row["iteration"]:
            self.line(f"goes on after iteration {row['iteration']}")
        if self._live:
            self._live.moved(row["iteration"])

    def train(self, row: Row) -> None:
        self._pace.add(row["seconds"], row["num_iterations"])
        left = self._pace.left(self._num_iterations - row["iteration"])
        if self._live:
            self._live.train(row, left)
        else:
            self.line(train_line(row, self._num_iterations, self._num_epochs, left))

    def evaluation(self, row: Row) -> None:
        if self._live:
            self._live.evaluation(row)
        else:
            self.line(evaluation_line(row))

    def line(self, text: str) -> None:
        """A line of its own, above the bar where there is one."""
        self._console.print(text, markup=False)

    def close(self) -> None:
        """Leave the last state on the screen and give the terminal back."""
        if self._live:
            self._live.close()
            self._live = None


class Pace:
    """Seconds per iteration, the newest windows counting most: what is left is forecast from it."""

    def __init__(self) -> None:
        self._seconds: float | None = None

    def add(self, seconds: float, num_iterations: int) -> None:
        if num_iterations:
            newest = seconds / num_iterations
            self._seconds = newest if self._seconds is None else 0.7 * self._seconds + 0.3 * newest

    def seconds(self, num_iterations: int) -> float | None:
        """For so many more iterations; None before the first window."""
        return None if self._seconds is None else self._seconds * max(0, num_iterations)

    def left(self, num_iterations: int) -> str:
        """h:mm:ss for so many more iterations."""
        seconds = self.seconds(num_iterations)
        return "-" if seconds is None else str(timedelta(seconds=round(seconds)))


def train_line(row: Row, num_iterations: int, num_epochs: int, left: str) -> str:
    """One log step as a line."""
    wait = 100 * row["data_wait_seconds"] / row["seconds"] if row["seconds"] else 0.0
    fields = [
        f"train  iteration {row['iteration']}/{num_iterations}",
        f"epoch {row['epoch']:.2f}/{num_epochs}",
        f"images/s {row['images_per_second']:.0f}",
        f"wait {wait:.1f}%",
        f"lr {row['learning_rate']:.3g}",
        f"loss {_numbers(row['loss'], '.3f')}",
        f"top-1 {_numbers((100 * share for share in row['top1']), '.1f')}",
    ]
    if row.get("meta_loss") is not None:
        fields.append(f"meta {row['meta_loss']:.3f}")
    return "  ".join([*fields, f"left {left}"])


def evaluation_line(row: Row) -> str:
    """One evaluation as a line."""
    exits = row["exits"]
    fields = [
        f"eval  iteration {row['iteration']}",
        f"split {row['split']}",
        f"images {exits[0]['num_images']}",
        f"top-1 {_numbers((e['top1'] for e in exits), '.2f')}",
        f"top-5 {_numbers((e['top5'] for e in exits), '.2f')}",
        f"loss {_numbers((e['loss'] for e in exits), '.3f')}",
    ]
    return "  ".join(fields)


def _numbers(values: Iterable[float], form: str) -> str:
    return " ".join(format(value, form) for value in values)


class _Live:
    def __init__(self, console: Console, title: str, num_iterations: int, num_epochs: int) -> None:
        self._num_epochs = num_epochs
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TextColumn("left {task.fields[left]}"),
            console=console,
        )
        self._task = self._bar.add_task(title, total=num_iterations, epoch=f"-/{num_epochs}", speed="", left="-")
        self._train: Row | None = None
        self._evaluation: Row | None = None
        self._live = Live(self._bar, console=console, refresh_per_second=2)
        self._live.start()

    def moved(self, iteration: int) -> None:
        self._bar.update(self._task, completed=iteration)

    def train(self, row: Row, left: str) -> None:
        self._train = row
        self._bar.update(
            self._task,
            completed=row["iteration"],
            epoch=f"{row['epoch']:.2f}/{self._num_epochs}",
            speed=f"{row['images_per_second']:,.0f} images/s",
            left=left,
        )
        self._draw()

    def evaluation(self, row: Row) -> None:
        self._evaluation = row
        self._draw()

    def close(self) -> None:
        self._live.stop()

    def _draw(self) -> None:
        self._live.update(Group(self._bar, self._exits()), refresh=True)

    def _exits(self) -> Table | Text:
        train, evaluation = self._train, self._evaluation
        columns: list[tuple[str, Sequence[str]]] = []
        if train:
            columns.append(("train loss", [f"{loss:.3f}" for loss in train["loss"]]))
            columns.append(("train top-1 %", [f"{100 * share:.2f}" for share in train["top1"]]))
        if evaluation:
            columns.append((f"{evaluation['split']} top-1 %", [f"{e['top1']:.2f}" for e in evaluation["exits"]]))
            columns.append((f"{evaluation['split']} loss", [f"{e['loss']:.3f}" for e in evaluation["exits"]]))
        if not columns:
            return Text("")
        table = Table("exit", box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
        for name, _ in columns:
            table.add_column(name, justify="right")
        for exit_index, cells in enumerate(zip(*(cells for _, cells in columns), strict=True), start=1):
            table.add_row(str(exit_index), *cells)
        return table
