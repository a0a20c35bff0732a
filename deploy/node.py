"""One node's share of a job, where containers are started and not commands: `python -m deploy.node`.

torchrun alone falls short there in three ways. It takes itself for the rendezvous' host only if its own name resolves
already; a node that starts before the head gives up after a minute; and it ends with 1 whatever its processes end with,
by which a cluster cannot tell a preemption or a refusal from a fault.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

from deploy.log_files import LOGS, REFUSAL

PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)
# Exit codes of `earlybird train`, by what the run's folder says of its end. Other faults may go away: torchrun's own 1.
PREEMPTED, DIVERGED, REFUSED = 75, 3, 2
CODES = {"preempted": PREEMPTED, "diverged": DIVERGED}
_TAIL = 65_536  # bytes of the log in which its last row lies


def main(arguments: list[str]) -> int:
    """Start torchrun as the head or not, hand signals on, say how it ended."""
    parser = argparse.ArgumentParser(prog="deploy.node", description=__doc__)
    parser.add_argument("--rank-from", required=True, metavar="VARIABLE", help="environment's number of this node")
    parser.add_argument("--head", required=True, metavar="HOST:PORT", help="where node 0 listens")
    parser.add_argument("--run-folder", required=True, type=Path)
    parser.add_argument("--patience", type=float, default=3600.0, metavar="SECONDS", help="to wait for other nodes")
    end = arguments.index("--")  # behind it: torchrun's options, the module and its arguments
    given = parser.parse_args(arguments[:end])
    rank = os.environ.get(given.rank_from, "")
    if not rank.isdecimal():
        parser.error(f"{given.rank_from} is {rank!r}; it must be this node's number, which the cluster sets")
    host, _, port = given.head.rpartition(":")
    return Node(int(rank) == 0, host, int(port), given.patience).run(arguments[end + 1 :], given.run_folder)


class Node:
    """is_head: whether torchrun's store is here, at host:port, which the other nodes wait for."""

    def __init__(self, is_head: bool, host: str, port: int, patience: float) -> None:
        self.is_head, self.host, self.port, self.patience = is_head, host, port, patience
        self.child: subprocess.Popen[bytes] | None = None
        self.told = False

    def run(self, torchrun: list[str], run_folder: Path) -> int:
        """The exit code: 0, 75 for a run that was preempted, 3 for one that diverged, 2 for one that was refused, else
        torchrun's."""
        for number in PASSED_ON:
            signal.signal(number, self._hand_on)
        began, refusal = time.time(), run_folder / LOGS / REFUSAL
        if self.is_head:
            with suppress(OSError):  # it may be an earlier job's
                refusal.unlink()
        if not self.is_head and not self._head_listens():
            if not self.told:
                print(f"deploy.node: {self.host}:{self.port} did not listen in {self.patience:.0f} s", file=sys.stderr)
            return PREEMPTED if self.told else 1
        conf = f"is_host={str(self.is_head).lower()},join_timeout={self.patience:.0f}"
        options = ["--rdzv-endpoint", f"{self.host}:{self.port}", "--rdzv-conf", conf]
        self.child = subprocess.Popen([sys.executable, "-m", "torch.distributed.run", *options, *torchrun])
        if self.told:
            self.child.terminate()
        code = self.child.wait()
        if code == 0:
            return 0
        if refusal.exists():
            return REFUSED
        if self.told:  # whether it could save or not: it goes on from its newest checkpoint
            return PREEMPTED
        return CODES.get(last_word(run_folder / "log.jsonl", began), code if code > 0 else 1)

    def _hand_on(self, number: int, _: FrameType | None) -> None:
        self.told = True
        if self.child is not None:
            self.child.send_signal(number)

    def _head_listens(self) -> bool:
        """Waits until it does; False if it does not, or this node was told to stop."""
        last = time.monotonic() + self.patience
        while time.monotonic() < last and not self.told:
            try:
                socket.create_connection((self.host, self.port), timeout=5.0).close()
                return True
            except OSError:  # no name yet, no pod yet, no torchrun yet
                time.sleep(1.0)
        return False


def last_word(log: Path, began: float) -> str:
    """The status of the run's last end, "" where its log tells of none since `began` (seconds since 1970)."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL))
            row = json.loads(file.read().splitlines()[-1])
        return str(row["status"]) if row["event"] == "end" and row["time"] >= began else ""
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return ""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
