"""What the outside asks of a run: to save, or to save and stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

STOP = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
SAVE = signal.SIGUSR2
STOPPED = 75  # exit code of a run that was asked to stop: start it again, it goes on (EX_TEMPFAIL of sysexits.h)


def hear(numbers: Iterable[signal.Signals], handle: Callable[[int, FrameType | None], None]) -> dict[int, Any]:
    """Have `handle` called at these signals; the handlers before. SIGHUP stays ignored where it was: nohup asks so."""
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else set()
    return {number: signal.signal(number, handle) for number in numbers if number not in ignored}


class Start:
    """While nothing is trained yet, and so nothing can be lost, a signal to stop ends the process where it is.

    Once a run has `begun`, Requests hears the signals; one that comes after them, when the run is on its way out,
    changes nothing of how it ends: torchrun sends SIGTERM to those whose neighbour was lost, while they say so.
    """

    def __init__(self) -> None:
        self.begun = False
        self._previous = hear(STOP, self._handle)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if not self.begun:
            raise SystemExit(STOPPED)

    def close(self) -> None:
        """Give the signals back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)


class Requests:
    """Signals seen by any rank, agreed over all ranks once an iteration.

    SIGTERM, SIGINT, SIGUSR1 and SIGHUP (the terminal is gone; not under nohup) ask for a checkpoint and a clean end,
    SIGUSR2 for a checkpoint alone. A second SIGINT ends the process at once. Ranks agree by a small all-reduce on the
    CPU that is started in one iteration and read in the next, so that nobody waits for it: all ranks act in the same
    iteration.
    """

    def __init__(self) -> None:
        self._stop = self._save = False
        self.asked_at: float | None = None  # time.monotonic() of the first signal to stop that came to this process
        self._group: Any = None  # a gloo group: agreeing must not touch the GPU's stream
        if dist.is_initialized() and dist.get_world_size() > 1:
            self._group = dist.new_group(backend="gloo")
        self._pending: tuple[Any, torch.Tensor] | None = None
        self._previous = hear((*STOP, SAVE), self._handle)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == SAVE:
            self._save = True
        elif number == signal.SIGINT and self._stop:
            os._exit(130)
        else:
            self._stop = True
            self.asked_at = self.asked_at or time.monotonic()

    def ask_to_save(self) -> None:
        """As SIGUSR2 would: all ranks save in one of the next iterations."""
        self._save = True

    def poll(self) -> tuple[bool, bool]:
        """(stop, save) as agreed over all ranks; call equally often on every rank: once an iteration or evaluation
        batch. A save that the caller cannot see to goes back by `ask_to_save`."""
        mine = torch.tensor([self._stop, self._save], dtype=torch.int32)
        self._save = False
        if self._group is None:
            agreed = mine
        else:
            agreed = torch.zeros_like(mine)
            if self._pending is not None:
                work, agreed = self._pending
                work.wait()
            self._pending = (dist.all_reduce(mine, op=dist.ReduceOp.MAX, group=self._group, async_op=True), mine)
        stop, save = agreed.tolist()
        return bool(stop), bool(save)

    def close(self) -> None:
        """Finish the pending agreement and give the signals back."""
        if self._pending is not None:
            self._pending[0].wait()
            self._pending = None
        for number, handler in self._previous.items():
            signal.signal(number, handler)
