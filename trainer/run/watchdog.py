"""A thread that tells what a run hangs in, when no step ends any more."""

from __future__ import annotations

import faulthandler
import io
import logging
import re
import statistics
import sys
import threading
import time
import traceback
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from trainer.run.health import HealthConfig
from trainer.run.interval import Interval

logger = logging.getLogger(__name__)

STALLS = "stalls"  # folder of what the ranks tell
REMEMBERED = 101  # steps that the median is taken over
LEAST = 5  # steps before there is a median; the first ones compile, fill caches and wait for other ranks
BETWEEN = "between steps"  # the phase that is none
HEAD = re.compile(r"no step ended for .* phase (.*)$")  # of what a rank tells
PATIENCE = 10  # times the floor until then


class Watchdog:
    """Watches the thread that made it. That thread calls `beat` after every step and does nothing else for it.

    In a stall `stalls/rank-R.txt` in the run folder and standard error get the rank, the phase and every thread's
    stack, once; half a floor later they get what the other ranks' files say, and which ranks wrote none: those are
    stopped or dead, and the others wait for them. The phase is read off the stack: the innermost function of `phases`
    that is being executed. A thread that holds Python's lock (a hang in native code) stops this one too: then Python's
    own fault handler writes the stacks, to standard error alone.
    """

    def __init__(
        self,
        config: HealthConfig,
        run_folder: Path,
        rank: int,
        phases: Mapping[Callable[..., Any], str],
        num_ranks: int = 1,
    ) -> None:
        """phases  names, by the function (or method) that the watched thread is in during it"""
        self._factor, self._floor = config.watchdog_factor, Interval.time(config.watchdog_floor, "watchdog_floor")
        self._folder, self._rank, self._num_ranks = run_folder / STALLS, rank, num_ranks
        self._phases: dict[CodeType, str] = {_code(function): name for function, name in phases.items()}
        self._watched = threading.get_ident()
        self._steps: deque[float] = deque(maxlen=REMEMBERED)
        self._last, self._told, self._compared = time.monotonic(), False, False
        self._stalls: deque[tuple[str, float]] = deque()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        if self._factor:
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def beat(self) -> None:
        """A step has ended."""
        now = time.monotonic()
        self._steps.append(now - self._last)
        self._last = now

    def stalls(self) -> list[tuple[str, float]]:
        """(phase, seconds until it was told) of the stalls told of since the last call."""
        return [self._stalls.popleft() for _ in range(len(self._stalls))]

    @property
    def limit(self) -> float:
        """Seconds without a step that make a stall."""
        steps = list(self._steps)
        if len(steps) < LEAST:
            return PATIENCE * self._floor
        return max(self._floor, self._factor * statistics.median(steps))

    def close(self) -> None:
        """End the thread."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        stuck_since, told_at = self._last, 0.0
        while not self._ended.wait(min(1.0, self._floor / 4)):
            faulthandler.dump_traceback_later(self.limit + 2 * self._floor, file=2)
            last = self._last
            if last != stuck_since:
                stuck_since, self._told, self._compared = last, False, False
            seconds = time.monotonic() - last
            if not self._told and seconds > self.limit:
                self._told, told_at = True, time.monotonic()
                self._tell(seconds)
            if self._told and not self._compared and time.monotonic() - told_at > self._floor / 2:
                self._compared = True
                self._compare(seconds)
        faulthandler.cancel_dump_traceback_later()

    def _tell(self, seconds: float) -> None:
        frames = sys._current_frames()
        phase = self._phase(frames.get(self._watched))
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        text = io.StringIO()
        text.write(
            f"{time.strftime('%Y-%m-%d %H:%M:%S')} rank {self._rank}: no step ended for {seconds:.0f} s (limit "
            f"{self.limit:.0f} s), phase {phase}\n"
        )
        text.writelines(traceback.format_stack(frames.get(self._watched)))
        shown = text.getvalue()
        print(shown, file=sys.stderr, flush=True)
        for ident, frame in frames.items():
            if ident not in (self._watched, threading.get_ident()):
                text.write(f"\nthread {names.get(ident, ident)}\n")
                text.writelines(traceback.format_stack(frame))
        self._write(text.getvalue() + "\n")
        self._stalls.append((phase, seconds))

    def _compare(self, seconds: float) -> None:
        """What the files of all ranks say that were written since the last step ended."""
        if self._num_ranks == 1:
            return
        silent, phases = [], defaultdict(list)
        for rank in range(self._num_ranks):
            try:
                file = self._file(rank)
                fresh = file.stat().st_mtime >= time.time() - seconds
                heads = [line for line in file.read_text().splitlines() if HEAD.search(line)] if fresh else []
            except OSError:
                heads = []
            found = HEAD.search(heads[-1]) if heads else None
            if found is None:
                silent.append(rank)
            else:
                phases[found[1]].append(rank)
        text = "; ".join(f"phase {phase}: {_ranks(ranks)}" for phase, ranks in phases.items())
        if silent:
            which = "gives no sign: its process is" if len(silent) == 1 else "give no sign: their processes are"
            text = f"{_ranks(silent)} {which} stopped, dead or cut off from the run folder; {text}"
        text = f"{time.strftime('%Y-%m-%d %H:%M:%S')} rank {self._rank}: of {self._num_ranks} ranks, {text}\n"
        print(text, file=sys.stderr, flush=True)
        self._write(text)

    def _file(self, rank: int) -> Path:
        return self._folder / f"rank-{rank}.txt"

    def _write(self, text: str) -> None:
        file = self._file(self._rank)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a") as opened:
                opened.write(text)
        except OSError as error:
            logger.warning("%s could not be written (%s)", file, error.strerror)

    def _phase(self, frame: FrameType | None) -> str:
        while frame is not None:
            if frame.f_code in self._phases:
                return self._phases[frame.f_code]
            frame = frame.f_back
        return BETWEEN


def last_stall(run_folder: Path) -> float:
    """Unix time at which a rank last told of a stall; 0 where none did."""
    return max((file.stat().st_mtime for file in (run_folder / STALLS).glob("rank-*.txt")), default=0.0)


def _ranks(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"


def _code(function: Callable[..., Any]) -> CodeType:
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function.__code__
