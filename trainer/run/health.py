"""Whether a run is well: updates that were left out, and signs of trouble in what it logs."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from trainer.evaluation.anytime import AnytimeRow
from trainer.run.interval import Interval
from trainer.telemetry.window import Reading

if TYPE_CHECKING:
    from trainer.config import Config

Sign = tuple[str, dict[str, Any]]

SPIKE, USUAL, LEAST_NATS = 2.0, 20, 0.5  # times the median of so many log steps, and at least so much above it
COLLAPSE_POINTS, COLLAPSE_TIMES = 2.0, 3  # an exit so many points below an earlier one in so many evaluations
SATURATED = 0.95  # share of epsilon that sample weights may be away from 1
STRAGGLES, STRAGGLER_TIMES = 1.3, 5  # times the median of the ranks in so many log steps; alerts ask for as much


@dataclass(frozen=True)
class HealthConfig:
    """Group `health`.

    non_finite      what follows an update whose loss or gradient is not finite on any rank. It never moves a weight.
                    stop: the run ends at the next log step; skip: it goes on without that update; rollback: it goes
                    back to the newest checkpoint, which helps where the cause does not repeat (a flipped bit). In
                    fp16, whose loss scale is found by overflowing, updates are skipped until max_skips
    max_skips       updates left out in a row that end the run whatever the policy
    max_rollbacks   times that a process goes back before it stops
    watchdog_factor a stall is told of when no iteration (or evaluation step) ended in so many times the median; 0: off
    watchdog_floor  and at least so long
    """

    non_finite: Literal["stop", "skip", "rollback"] = "stop"
    max_skips: int = 20
    max_rollbacks: int = 3
    watchdog_factor: float = 5.0
    watchdog_floor: str = "60s"

    def __post_init__(self) -> None:
        for name in ("max_skips", "max_rollbacks"):
            if getattr(self, name) < 1:
                raise ValueError(f"health.{name} is {getattr(self, name)}; it must be at least 1")
        if self.watchdog_factor != 0 and self.watchdog_factor < 1:
            raise ValueError(f"health.watchdog_factor is {self.watchdog_factor}; it must be at least 1, or 0 for off")
        Interval.time(self.watchdog_floor, "health.watchdog_floor")


class RollbackError(Exception):
    """Training must go on from the newest checkpoint; the message says why."""


def diverged(what: str, iteration: int, saved_at: int, config: Config) -> FloatingPointError:
    """The error that ends a run whose numbers are no longer finite; `what` was seen first."""
    kept = f"the checkpoint of iteration {saved_at} is good" if saved_at >= 0 else "nothing was saved yet"
    return FloatingPointError(
        f"training diverged: {what} after iteration {iteration}; {kept}. Train in another --run folder with a lower "
        f"optim.base_lr (it is {config.optim.base_lr}) or, if it was in half precision, with precision.dtype=float32"
    )


def straggler_scores(own_seconds: Sequence[float]) -> list[float]:
    """[R]: every rank's own work over the ranks' median: 1 is as the others, 2 takes twice as long.

    own_seconds  [R] of an iteration, what it waits for the others not counted: ranks end an iteration together, so a
                 slow one does not show by how long an iteration takes
    """
    usual = statistics.median(own_seconds)
    return [seconds / usual if usual > 0 else 1.0 for seconds in own_seconds]


class Signs:
    """Signs of trouble in readings and evaluations. Each is told when it appears, and again only after it was gone.

    epsilon  of the sample weights, None where there are none
    """

    def __init__(self, epsilon: float | None) -> None:
        self._epsilon = epsilon
        self._losses: dict[int, deque[float]] = {}
        self._below: dict[int, int] = {}
        self._slow: dict[int, int] = {}
        self._told: set[tuple[str, int]] = set()

    def trained(self, reading: Reading) -> list[Sign]:
        """What a log step shows: a loss far above its usual value, sample weights that no longer tell samples apart."""
        found: list[Sign] = []
        for k, loss in enumerate(reading.loss, start=1):
            past = self._losses.setdefault(k, deque(maxlen=USUAL))
            usual = statistics.median(past) if len(past) == USUAL else math.inf
            spike = loss > max(SPIKE * usual, usual + LEAST_NATS)
            found += self._new("loss spike", k, spike, exit=k, loss=round(loss, 4), usual=round(usual, 4))
            if math.isfinite(loss):
                past.append(loss)
        for k, quantiles in enumerate(reading.weight_quantiles or (), start=1):
            assert self._epsilon is not None
            bound = SATURATED * self._epsilon
            saturated = all(abs(weight - 1) >= bound for weight in quantiles)
            told = [round(weight, 3) for weight in quantiles]
            found += self._new("sample weights saturated", k, saturated, exit=k, quantiles=told)
        return found

    def compared(self, scores: Sequence[float]) -> list[Sign]:
        """What a log step's straggler scores show: a rank that all others wait for."""
        found: list[Sign] = []
        for rank, score in enumerate(scores):
            self._slow[rank] = self._slow.get(rank, 0) + 1 if score > STRAGGLES else 0
            slow = self._slow[rank] >= STRAGGLER_TIMES
            found += self._new("straggler", rank, slow, rank=rank, score=round(score, 2))
        return found

    def evaluated(self, rows: Sequence[AnytimeRow]) -> list[Sign]:
        """What an evaluation shows: a later exit that stays worse than an earlier one."""
        found: list[Sign] = []
        for row in rows[1:]:
            k = row["exit"]
            best = max(rows[: k - 1], key=lambda earlier: earlier["top1"])
            worse = row["top1"] < best["top1"] - COLLAPSE_POINTS
            self._below[k] = self._below.get(k, 0) + 1 if worse else 0
            collapsed = self._below[k] >= COLLAPSE_TIMES
            found += self._new(
                "exit collapse", k, collapsed, exit=k, top1=round(row["top1"], 2), below_exit=best["exit"]
            )
        return found

    def _new(self, name: str, number: int, present: bool, **fields: Any) -> list[Sign]:
        """number  of the exit or rank"""
        key = (name, number)
        if not present:
            self._told.discard(key)
            return []
        if key in self._told:
            return []
        self._told.add(key)
        return [(name, fields)]
