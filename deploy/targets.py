"""Every place that runs jobs, by its name, and what holds for all of them."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable
from pathlib import Path

from deploy.job import Job
from deploy.kubernetes import KubernetesTarget
from deploy.local import LocalTarget
from deploy.record import Record, read_record
from deploy.site import Site
from deploy.skypilot import SkyPilotTarget
from deploy.slurm import SlurmTarget
from deploy.target import ENDED, Standing, Target

TARGETS: dict[str, Callable[[], Target]] = {
    "local": LocalTarget,
    "slurm": SlurmTarget,
    "kubernetes": KubernetesTarget,
    "skypilot": SkyPilotTarget,
}
SILENCE = 600.0  # seconds that a scheduler may be out of reach while someone waits for its job


def target_of(name: str) -> Target:
    """The target of that name; ValueError with the nearest one where there is none."""
    if name not in TARGETS:
        near = difflib.get_close_matches(name, TARGETS, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"--target is {name!r}; it must be one of {', '.join(TARGETS)}{meant}")
    return TARGETS[name]()


def submit(target: str, job: Job, site: Site, *, recipe: str = "", settings: tuple[str, ...] = ()) -> Record:
    """Check, send, and keep a record in the run folder and in that of each run of an array.

    Raises ValueError where the cluster would refuse, or where a job goes on in the folder: then nothing is sent.
    """
    place, folder = target_of(target), Path(job.run_folder)
    for element in job.elements:
        if before := in_progress(Path(element.run_folder)):
            raise ValueError(
                f"--run-folder {element.run_folder} holds job {before.id}, which is {standing_of(before).state}; "
                f"earlybird cancel {element.run_folder} stops it, or give another folder"
            )
    place.check(job, site)
    text = place.render(job, site)  # it may ask the cluster: not once the job is on its way
    elements = [element.run_folder for element in job.elements] if job.seeds else []
    record = Record(
        target=target,
        id=place.submit(job, site),
        name=job.name,
        submitted_at=time.time(),
        run_folder=job.run_folder,
        text=text,
        recipe=recipe,
        settings=settings,
        nodes=job.nodes,
        gpus_per_node=job.gpus_per_node,
        run_folders=tuple(elements),
        site=site,
    )
    record.write(folder)
    for index, path in enumerate(elements):
        record.of(index, path).write(Path(path))
    return record


def standing_of(record: Record) -> Standing:
    """How a job stands; where its scheduler cannot be asked, unknown, with the reason."""
    try:
        return target_of(record.target).standing(record)
    except ValueError as error:
        return Standing("unknown", str(error))


def wait_for(record: Record, told: Callable[[Standing], None], pause: float = 2.0) -> Standing:
    """Until the job has ended; `told` hears of every change. ValueError where its scheduler is silent too long."""
    before, heard = None, time.monotonic()
    while True:
        now = standing_of(record)
        if now.state != "unknown":
            heard = time.monotonic()
        elif time.monotonic() - heard > SILENCE:
            raise ValueError(f"job {record.id} cannot be followed for {SILENCE:.0f} s now: {now.reason or 'forgotten'}")
        if now != before:
            told(now)
        if now.state in ENDED:
            return now
        before = now
        time.sleep(pause)


def in_progress(folder: Path) -> Record | None:
    """The record of a job that waits or runs in the folder; None where there is none."""
    record = read_record(folder)
    return record if record is not None and standing_of(record).state in ("pending", "running", "preempted") else None
