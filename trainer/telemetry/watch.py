"""A run's progress in a terminal, from its metrics endpoint: for runs on other machines and in other terminals."""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TextIO

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from trainer.telemetry.jsonl import to_json
from trainer.telemetry.scrape import Scrape, scrape
from trainer.telemetry.targets import read_address

REMEMBERED = 60  # scrapes that the line of throughput shows
PATIENCE = 30.0  # seconds without an answer that end the watch
BLOCKS = "▁▂▃▄▅▆▇█"
BAR = 30  # characters


class Watched:
    """Where the metrics come from: a URL, or a run folder, whose run may start again at another port."""

    def __init__(self, target: str, ca: str = "") -> None:
        """ValueError for a folder of a run that has no endpoint now."""
        self._folder = None if target.startswith(("http://", "https://")) else Path(target)
        self._url = target if target.rstrip("/").endswith("/metrics") else target.rstrip("/") + "/metrics"
        self._ca = ca
        if self._folder is not None and self._address() is None:
            raise ValueError(
                f"{target} has no metrics endpoint: the run is over, or was started without one (--set "
                f"telemetry.port=9400); earlybird report {target} shows what it has logged"
            )

    def scrape(self) -> Scrape:
        """The newest answer; OSError without one, EOFError where the run is over."""
        url = self._address()
        if url is None:
            raise EOFError
        return scrape(url, self._ca)

    def _address(self) -> str | None:
        return self._url if self._folder is None else read_address(self._folder)

    def how_it_ended(self) -> str:
        """For a person."""
        summary = self._folder / "summary.json" if self._folder else None
        if summary is None or not summary.is_file():
            return "the run is over"
        found = json.loads(summary.read_text())
        return f"the run is over: {found['status']} after {found['iterations']} iterations"


def watch(
    target: str,
    *,
    every: float = 2.0,
    once: bool = False,
    as_json: bool = False,
    ca: str = "",
    out: TextIO | None = None,
) -> None:
    """Follow a run until it ends: drawn anew in its place on a terminal, a line every `every` seconds elsewhere.

    target  a run folder or the URL of its endpoint; once  a single look; as_json  a JSON object a line
    Raises ValueError where nothing answers, at first or for PATIENCE seconds.
    """
    watched, out = Watched(target, ca), out or sys.stdout
    console = Console(file=out, highlight=False, soft_wrap=True)
    speeds: deque[float] = deque(maxlen=REMEMBERED)
    try:
        if as_json or once or not console.is_terminal:
            for seen in _scrapes(watched, target, every, once):
                print(to_json(seen.as_row()) if as_json else line(seen), file=out, flush=True)
        else:
            with Live(console=console, auto_refresh=False) as live:
                for seen in _scrapes(watched, target, every, once):
                    speeds.append(seen.value("images_per_second") or 0.0)
                    live.update(drawn(seen, list(speeds)), refresh=True)
    except KeyboardInterrupt:
        return
    if not once:
        print(watched.how_it_ended(), file=sys.stderr if as_json else out)


def _scrapes(watched: Watched, target: str, every: float, once: bool) -> Iterator[Scrape]:
    answered = time.monotonic()
    while True:
        try:
            yield watched.scrape()
            answered = time.monotonic()
        except EOFError:
            return
        except OSError as error:
            if once or time.monotonic() - answered > PATIENCE:
                raise ValueError(f"{target} does not answer ({error}); is the run alive, the address right?") from error
        if once:
            return
        time.sleep(every)


def line(seen: Scrape) -> str:
    """One look as a line of `name value` fields."""
    row = seen.as_row()
    fields = [
        f"{row['run']}  iteration {row['iteration'] or 0:.0f}/{row['iterations_planned'] or 0:.0f}",
        f"epoch {row['epoch'] or 0:.2f}",
        f"images/s {row['images_per_second'] or 0:.0f}",
        f"left {_time(row['eta_seconds'])}",
    ]
    for split in ("train", "val"):
        shares = [row_of_exit[f"{split}_top1"] for row_of_exit in row["exits"]]
        if shares and None not in shares:
            fields.append(f"{split} top-1 {' '.join(f'{100 * share:.1f}' for share in shares)}")
    return "  ".join(fields)


def drawn(seen: Scrape, speeds: Sequence[float]) -> RenderableType:
    """One look as a page: progress, throughput, a bar for each exit, and what else tells of the run's health."""
    row = seen.as_row()
    planned, done = row["iterations_planned"] or 0.0, row["iteration"] or 0.0
    head = Text.assemble(
        (row["run"], "bold"),
        f"  {row['recipe']} on {seen.label('build_info', 'device')}  ranks {row['ranks'] or 1:.0f}",
    )
    progress = Table.grid(padding=(0, 2))
    progress.add_row(
        ProgressBar(total=max(planned, 1.0), completed=done, width=BAR),
        f"{done:.0f}/{planned:.0f}  epoch {row['epoch'] or 0:.2f}  left {_time(row['eta_seconds'])}",
    )
    speed = f"{speeds[-1]:,.0f} images/s  {sparkline(speeds)}  median {statistics.median(speeds):,.0f}"
    return Group(head, progress, Text(speed), _exits(seen), Text(health(seen), style="dim"))


def _exits(seen: Scrape) -> Table:
    table = Table("exit", "top-1 %", box=None, header_style="dim", pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("val", "train", "loss"):
        table.add_column(name, justify="right")
    for row in seen.as_row()["exits"]:
        val, train = row["val_top1"], row["train_top1"]
        shown = val if val is not None else train
        bar = "█" * round(BAR * shown) if shown is not None else ""
        style = "green" if val is not None else "yellow"  # yellow: nothing but training images yet
        cells = [f"{100 * share:.2f}" if share is not None else "-" for share in (val, train)]
        loss = row["train_loss"]
        table.add_row(
            str(row["exit"]), Text(bar.ljust(BAR, "░"), style=style), *cells, "-" if loss is None else f"{loss:.3f}"
        )
    return table


def health(seen: Scrape) -> str:
    """Waiting, goodput, checkpoint, and whatever went wrong."""
    training = seen.total("step_seconds_sum")
    fields = [f"wait {100 * seen.total('data_wait_seconds_total') / training:.1f}%"] if training else []
    goodput, age = seen.value("goodput_ratio"), seen.value("checkpoint_age_seconds")
    fields += [f"goodput {100 * goodput:.1f}%"] if goodput is not None else []
    fields += [f"checkpoint {_time(age)} ago"] if seen.value("checkpoint_timestamp_seconds") else []
    for name, what in (
        ("bad_samples_total", "unreadable images"),
        ("skipped_steps_total", "updates left out"),
        ("stalls_total", "stalls"),
        ("checkpoint_failures_total", "failed checkpoints"),
        ("rollbacks_total", "rollbacks"),
    ):
        fields += [f"{what} {seen.total(name):.0f}"] if seen.total(name) else []
    return "  ".join(fields)


def sparkline(values: Sequence[float]) -> str:
    """A block for each value, as high as its share of the largest."""
    top = max(values, default=0.0) or 1.0
    return "".join(BLOCKS[round(max(0.0, value) / top * (len(BLOCKS) - 1))] for value in values)


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else str(timedelta(seconds=round(seconds)))
