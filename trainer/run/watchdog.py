"""A thread that tells what a run hangs in, when no step ends any more."""

from __future__ import annotations

import faulthandler
import io
import logging
import statistics
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from trainer.run.health import HealthConfig
from trainer.run.interval import Interval

logger = logging.getLogger(__name__)

REMEMBERED = 101  # steps that the median is taken over
LEAST = 5  # steps before there is a median; the first ones compile, fill caches and wait for other ranks
BETWEEN = "between steps"  # the phase that is none
PATIENCE = 10  # times the floor until then


class Watchdog:
    """Watches the thread that made it. That thread calls `beat` after every step and does nothing else for it.

    In a stall `stalls/rank-R.txt` in the run folder and standard error get the rank, the phase and every thread's
    stack, once. The phase is read off the stack: the innermost function of `phases` that is being executed. A thread
    that holds Python's lock (a hang in native code) stops this one too: then Python's own fault handler writes the
    stacks, to standard error alone.
    """

    def __init__(
        self, config: HealthConfig, run_folder: Path, rank: int, phases: Mapping[Callable[..., Any], str]
    ) -> None:
        """phases  names, by the function (or method) that the watched thread is in during it"""
        self._factor, self._floor = config.watchdog_factor, Interval.time(config.watchdog_floor, "watchdog_floor")
        self._file, self._rank = run_folder / "stalls" / f"rank-{rank}.txt", rank
        self._phases: dict[CodeType, str] = {_code(function): name for function, name in phases.items()}
        self._watched = threading.get_ident()
        self._steps: deque[float] = deque(maxlen=REMEMBERED)
        self._last, self._told = time.monotonic(), False
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
        stuck_since = self._last
        while not self._ended.wait(min(1.0, self._floor / 4)):
            faulthandler.dump_traceback_later(self.limit + 2 * self._floor, file=2)
            last = self._last
            if last != stuck_since:
                stuck_since, self._told = last, False
            seconds = time.monotonic() - last
            if not self._told and seconds > self.limit:
                self._told = True
                self._tell(seconds)
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
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a") as file:
                file.write(text.getvalue() + "\n")
        except OSError as error:
            logger.warning("%s could not be written (%s)", self._file, error.strerror)
        self._stalls.append((phase, seconds))

    def _phase(self, frame: FrameType | None) -> str:
        while frame is not None:
            if frame.f_code in self._phases:
                return self._phases[frame.f_code]
            frame = frame.f_back
        return BETWEEN


def _code(function: Callable[..., Any]) -> CodeType:
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function.__code__
