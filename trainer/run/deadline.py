"""How long a process that was asked to stop has, and its end where it does not come to one."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Collection, Mapping

from trainer.run.interval import Interval

MARGIN, LARGEST_MARGIN = 0.1, 5.0  # share of the time that is left for the process to go; seconds at most
LONGEST = 1e6  # seconds; a wait of many years overflows
# Where torchrun takes it from, first to last (its option --shutdown-timeout comes before, and its processes do not see
# that), and what it takes without.
SHUTDOWN_TIMEOUTS, SHUTDOWN_TIMEOUT = ("PET_SHUTDOWN_TIMEOUT", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"), 30.0


def grace_seconds(asked: str, environment: Mapping[str, str] = os.environ) -> float:
    """Seconds from a request to stop until the kill: what run.grace says, or torchrun leaves its processes if less."""
    seconds = Interval.time(asked, "run.grace")
    if "TORCHELASTIC_RUN_ID" not in environment:
        return seconds
    told = [float(environment[name]) for name in SHUTDOWN_TIMEOUTS if name in environment]
    return min(seconds, *told[:1] or [SHUTDOWN_TIMEOUT])


class Deadline:
    """Ends the process with `code` shortly before `seconds` have passed since a signal of `signals`, unless it is
    closed before: whoever asked would kill it then, and could not tell that from a fault. What was saved is whole.

    Python's own handlers do not run while the main thread waits in native code (for another rank, for a disk): a thread
    is told by the file descriptor that Python writes the number of every handled signal to. Made in the main thread.
    """

    def __init__(self, seconds: float, signals: Collection[signal.Signals], code: int) -> None:
        self._seconds = min(seconds, LONGEST) - min(LARGEST_MARGIN, MARGIN * seconds)
        self._signals, self._code = signals, code
        self._ended = threading.Event()
        self._told, self._tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(self._told, True)
        self._previous = signal.set_wakeup_fd(self._tell, warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._wait, name="deadline", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """The process came to its end by itself."""
        signal.set_wakeup_fd(self._previous)
        self._ended.set()
        os.close(self._tell)
        self._thread.join()
        os.close(self._told)

    def _wait(self) -> None:
        while number := os.read(self._told, 1):
            if number[0] in self._signals and not self._ended.wait(self._seconds):
                print(
                    f"earlybird: asked to stop {self._seconds:.0f} s ago and not done: the run ends as it is, just "
                    f"before its grace is over, and goes on from its newest checkpoint",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(self._code)
