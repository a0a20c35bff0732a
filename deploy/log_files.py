"""Log files in a run folder, where all nodes write into one."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LOGS = "logs"  # in the run folder
REFUSAL = "refused"  # among the logs: why the trainer refused this start of the job
# What torchrun starts as each of its processes, with RUN/logs/rank and the command: a file of its own for every rank,
# which a restart goes on with.
TO_RANK_LOG = 'exec "$@" >> "$0-$RANK.log" 2>&1'
_PAUSE = 0.5  # seconds between looks at a file that is followed


def job_log(run: Path, job_id: str = "") -> Path:
    """Of the job's script; of one run of an array (id N_INDEX) it lies in the folder of the whole."""
    _, underscore, index = job_id.partition("_")
    return run.parent / LOGS / f"job-{index}.log" if underscore else run / LOGS / "job.log"


def rank_log(run: Path, rank: int) -> Path:
    """Of one process of torchrun, by its global rank, over all restarts."""
    return run / LOGS / f"rank-{rank}.log"


def follow_log(path: Path, ended: Callable[[], bool]) -> Iterator[str]:
    """What stands in the file, and what comes until `ended` says that no more will; ValueError where there is none."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    asked, over = 0.0, False
    while not path.is_file():
        if ended():
            there = sorted(file.name for file in path.parent.glob("*.log")) if path.parent.is_dir() else []
            raise ValueError(
                f"{path} is not there; {'there are ' + ', '.join(there) if there else 'the job has not begun'}"
            )
        time.sleep(_PAUSE)
    with path.open("rb") as file:
        while True:
            chunk = file.read(65536)
            if chunk:
                yield decoder.decode(chunk)
            elif over:
                return
            else:
                # The scheduler is asked seldom, and the file read once more after its answer.
                if time.monotonic() - asked >= 4 * _PAUSE:
                    over, asked = ended(), time.monotonic()
                if not over:
                    time.sleep(_PAUSE)
