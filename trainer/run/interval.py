"""How often something is due: `1epoch`, `500steps` or `10min`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

UNITS = {"epoch": "epoch", "epochs": "epoch", "step": "step", "steps": "step", "s": "s", "min": "min", "h": "h"}
SECONDS = {"s": 1, "min": 60, "h": 3600}


@dataclass(frozen=True)
class Interval:
    """`count` of a unit: epoch, step (an iteration), s, min or h."""

    count: int
    unit: str

    @classmethod
    def parse(cls, text: str, setting: str) -> Interval:
        """`1epoch`, `500 steps`, `10min`; ValueError naming `setting` for anything else."""
        found = cls._read(text)
        if found is None:
            raise ValueError(
                f"{setting} is {text!r}; it must be a whole number from 1 and a unit (epochs, steps, s, min or h), "
                f"for example 1epoch, 500steps or 10min"
            )
        return found

    @classmethod
    def time(cls, text: str, setting: str) -> float:
        """Seconds of `60s`, `10min` or `1h`; ValueError naming `setting` for anything else."""
        found = cls._read(text)
        if found is None or found.seconds is None:
            raise ValueError(
                f"{setting} is {text!r}; it must be a time, a whole number from 1 and a unit (s, min or h), for "
                f"example 60s, 10min or 24h"
            )
        return found.seconds

    @classmethod
    def _read(cls, text: str) -> Interval | None:
        match = re.fullmatch(r"\s*(\d+)\s*([a-z]+)\s*", text)
        if match is None or match[2] not in UNITS or int(match[1]) < 1:
            return None
        return cls(int(match[1]), UNITS[match[2]])

    @property
    def seconds(self) -> int | None:
        """Its length where it is a time, None where it counts epochs or steps."""
        return self.count * SECONDS[self.unit] if self.unit in SECONDS else None

    def lasts(self, iteration_seconds: float, epoch_iterations: float) -> float:
        """Its length in seconds at a pace: so long an iteration, so many of them an epoch."""
        if self.seconds is not None:
            return float(self.seconds)
        return self.count * iteration_seconds * (epoch_iterations if self.unit == "epoch" else 1)


class Due:
    """Whether the interval has passed. Epochs and steps are counted from the run's start, so a resumed run keeps the
    rhythm, and every rank answers alike. A time is counted from `restart`, by this process's own clock: where several
    ranks must act together, let one of them ask and the others follow.
    """

    def __init__(self, interval: Interval, clock: Callable[[], float] = time.monotonic) -> None:
        self.interval, self._clock = interval, clock
        self.restart()

    def restart(self) -> None:
        """Begin a new interval of time: what was due has been done."""
        self._began = self._clock()

    def after(self, iteration: int, ended_epoch: int | None) -> bool:
        """After `iteration` iterations in all; `ended_epoch` is the number of whole epochs done where the last
        iteration ended one, else None."""
        if self.interval.unit == "step":
            return iteration % self.interval.count == 0
        if self.interval.unit == "epoch":
            return ended_epoch is not None and ended_epoch % self.interval.count == 0
        assert self.interval.seconds is not None
        return self._clock() - self._began >= self.interval.seconds
