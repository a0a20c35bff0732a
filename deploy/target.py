"""What every place that runs jobs can do, and how a job stands there."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from deploy.job import Job
from deploy.record import Record
from deploy.site import Site

State = Literal["pending", "running", "completed", "failed", "cancelled", "preempted", "unknown"]
ENDED: tuple[State, ...] = ("completed", "failed", "cancelled")


@dataclass(frozen=True)
class Standing:
    """How a job stands for its scheduler.

    state   preempted: it was stopped and waits to be started again; unknown: the scheduler has forgotten it
    reason  the scheduler's own word, "" for none
    nodes   where it runs
    """

    state: State
    reason: str = ""
    nodes: str = ""


def together(parts: list[Standing]) -> Standing:
    """Of an array: what still goes on counts before what has ended, and what failed before what went well."""
    order: tuple[State, ...] = ("running", "pending", "preempted", "failed", "cancelled", "completed", "unknown")
    return min(parts, key=lambda part: order.index(part.state), default=Standing("unknown"))


class Target(Protocol):
    """A place that runs jobs. Every method raises ValueError, in one line, for what the user can mend: a missing
    program, a cluster that does not answer, a refusal."""

    def render(self, job: Job, site: Site) -> str:
        """What is sent, character by character."""

    def check(self, job: Job, site: Site) -> None:
        """Asks the scheduler whether it would take the job; changes nothing."""

    def submit(self, job: Job, site: Site) -> str:
        """Sends what `render` gives; the scheduler's id of the job."""

    def standing(self, record: Record) -> Standing:
        """How the job stands for its scheduler."""

    def logs(self, record: Record, rank: int | None, follow: bool) -> Iterator[str]:
        """What a rank printed, or for None the job's own log; with `follow` until the job has ended. Chunks of text."""

    def cancel(self, record: Record) -> None:
        """Stops the job for good: its processes are asked to save first."""


def called(command: Sequence[str], *, remedy: str, stdin: str | None = None, seconds: float = 60.0) -> str:
    """Standard output of a scheduler's program; ValueError with the last line of its complaint where it fails.

    remedy  what to do where the program is not there or does not answer
    """
    program = command[0]
    if shutil.which(program) is None:
        raise ValueError(f"{program} is not installed here; {remedy}")
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, errors="replace", timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"{program} gave no answer in {seconds:.0f} s; {remedy}") from None
    if done.returncode != 0:
        said = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        raise ValueError(f"{program} refused: {said[-1] if said else f'exit code {done.returncode}'}; {remedy}")
    return done.stdout
