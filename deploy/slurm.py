"""Jobs on Slurm."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from deploy.job import Job
from deploy.log_files import LOGS, follow_log, job_log, rank_log
from deploy.record import Record
from deploy.site import Site
from deploy.slurm_script import render
from deploy.target import ENDED, Standing, State, called, together

_REMEDY = "submit from a login node of the cluster, where sinfo answers"
# Slurm's states; what is not here is running (CONFIGURING, COMPLETING, ...).
_STATES: dict[str, State] = {
    "PENDING": "pending",
    "REQUEUED": "pending",
    "REQUEUE_HOLD": "pending",
    "REQUEUE_FED": "pending",
    "SPECIAL_EXIT": "pending",
    "SUSPENDED": "pending",
    "COMPLETED": "completed",
    "CANCELLED": "cancelled",
    "PREEMPTED": "preempted",
    "FAILED": "failed",
    "TIMEOUT": "failed",
    "NODE_FAIL": "failed",
    "BOOT_FAIL": "failed",
    "DEADLINE": "failed",
    "OUT_OF_MEMORY": "failed",
    "REVOKED": "failed",
}


class SlurmTarget:
    """sbatch, squeue, sacct and scancel of the machine that it is called on."""

    def render(self, job: Job, site: Site) -> str:
        return render(job, site, site.python or ("python3" if site.slurm.container_image else sys.executable))

    def check(self, job: Job, site: Site) -> None:
        script = self.render(job, site)
        for program in ("sbatch", "squeue", "scancel", "scontrol"):
            called([program, "--version"], remedy=_REMEDY)
        said = called(["sinfo", "--noheader", "--format=%P|%D|%G"], remedy=_REMEDY, seconds=30)
        partitions, default = _partitions(said)
        wanted = site.slurm.partition or default
        for partition in wanted.split(",") if wanted else []:
            if partition not in partitions:
                near = difflib.get_close_matches(partition, partitions, 1)
                meant = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(sorted(partitions))}"
                raise ValueError(f"there is no partition {partition!r} (slurm.partition of the site){meant}")
        if wanted:
            _fits(job, wanted, [group for name in wanted.split(",") for group in partitions[name]])
        called(["sbatch", "--test-only"], stdin=script, remedy="nothing was submitted", seconds=120)

    def submit(self, job: Job, site: Site) -> str:
        for folder in {Path(job.run_folder), *(Path(element.run_folder) for element in job.elements)}:
            (folder / LOGS).mkdir(parents=True, exist_ok=True)
        said = called(
            ["sbatch", "--parsable"], stdin=self.render(job, site), remedy="nothing was submitted", seconds=120
        )
        return said.strip().partition(";")[0]

    def standing(self, record: Record) -> Standing:
        try:
            said = called(
                ["squeue", "--noheader", "--states=all", f"--jobs={record.id}", "--format=%T|%r|%N"], remedy=_REMEDY
            )
        except ValueError as error:
            if "Invalid job id" not in str(error):
                raise
            said = ""
        rows = [line.split("|") for line in said.splitlines() if line.strip()] or _accounted(record.id)
        return together([_standing(*row) for row in rows])

    def logs(self, record: Record, rank: int | None, follow: bool) -> Iterator[str]:
        folder = Path(record.run_folder)
        path = job_log(folder, record.id) if rank is None else rank_log(folder, rank)
        return follow_log(path, lambda: not follow or self.standing(record).state in ENDED)

    def cancel(self, record: Record) -> None:
        """The batch script hears TERM, lets the run save, and cancels itself; a job that waits is cancelled at once."""
        state = self.standing(record).state
        if state in ENDED or state == "unknown":
            raise ValueError(f"job {record.id} is not there to cancel: it is {state}")
        # Elements of an array that wait hear no signal: they are cancelled before those that run are told.
        called(["scancel", "--state=PENDING", record.id], remedy=_REMEDY)
        try:
            called(["scancel", "--batch", "--signal=TERM", "--quiet", record.id], remedy=_REMEDY)
        except ValueError:  # nothing of it ran
            if self.standing(record).state not in ENDED:
                raise


def _partitions(said: str) -> tuple[dict[str, list[tuple[int, int]]], str]:
    """(nodes, GPUs of each) by partition, and the name of the default one ("" for none), from sinfo's lines."""
    found: dict[str, list[tuple[int, int]]] = {}
    default = ""
    for line in said.splitlines():
        marked, nodes, gres = line.strip().split("|", 2)
        name = marked.removesuffix("*")
        default = name if marked.endswith("*") else default
        # gpu:8, gpu:a100:8(S:0-1), gpu:a:2,gpu:b:2
        gpus = sum(int(number) for number in re.findall(r"\bgpu:(?:[^:,()]+:)?(\d+)", gres))
        found.setdefault(name, []).append((int(nodes), gpus))
    return found, default


def _fits(job: Job, partition: str, groups: list[tuple[int, int]]) -> None:
    total, most = sum(nodes for nodes, _ in groups), max((gpus for _, gpus in groups), default=0)
    if job.nodes > total:
        raise ValueError(f"--nodes is {job.nodes}, but partition {partition} has {total}; ask for fewer")
    able = sum(nodes for nodes, gpus in groups if gpus >= job.gpus_per_node)
    if able < job.nodes:
        raise ValueError(
            f"--gpus is {job.gpus_per_node} on each of {job.nodes} nodes, but in partition {partition} {able} nodes "
            f"have so many; the most that a node has there is {most}"
        )


def _accounted(job_id: str) -> list[list[str]]:
    """From the accounting, where there is one: squeue forgets a job minutes after its end."""
    try:
        said = called(
            ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={job_id}", "--format=State,NodeList"],
            remedy=_REMEDY,
        )
    except ValueError:  # a cluster without accounting: the run folder says how it ended
        return []
    rows = [line.split("|") for line in said.splitlines() if line.strip()]
    return [[row[0].split()[0], "", row[-1]] for row in rows]


def _standing(state: str, reason: str, nodes: str) -> Standing:
    return Standing(_STATES.get(state, "running"), "" if reason == "None" else reason, nodes)
