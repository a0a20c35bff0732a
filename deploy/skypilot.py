"""Jobs on any cloud, through SkyPilot's managed jobs."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from deploy.job import Element, Job
from deploy.manifest import to_yaml
from deploy.node import PREEMPTED
from deploy.record import Record
from deploy.shell import array
from deploy.site import Site
from deploy.target import Standing, State, called, together

_REMEDY = "sky check says which clouds it can use (SkyPilot's own installation: pip install skypilot)"
_NOTHING = "nothing was submitted"
_MODES = {"mount": "MOUNT", "cached": "MOUNT_CACHED", "copy": "COPY"}
_STATES: dict[str, State] = {
    "PENDING": "pending",
    "SUBMITTED": "pending",
    "STARTING": "pending",
    "RECOVERING": "preempted",
    "SUCCEEDED": "completed",
    "CANCELLED": "cancelled",
}
_RUN = """\
head=$(head -n 1 <<< "$SKYPILOT_NODE_IPS")
exec "${{node[@]}}" --head "$head:{port}" -- "${{torchrun[@]}}"
"""


class SkyPilotTarget:
    """A job is a managed job: SkyPilot finds the machines, and others where they are taken away. Its id is the number
    that `sky jobs queue` shows; of an array, all numbers with commas, and a run's index appended."""

    def render(self, job: Job, site: Site) -> str:
        return to_yaml(_task(job, element, site) for element in _in_mounts(job, site).elements)

    def check(self, job: Job, site: Site) -> None:
        tasks = [_task(job, element, site) for element in _in_mounts(job, site).elements]
        with _file(tasks[0]) as path:  # the others differ in name and seed alone
            called(["sky", "launch", "--dryrun", "--yes", *_secrets(site), path], remedy=_REMEDY, seconds=600)

    def submit(self, job: Job, site: Site) -> str:
        numbers: list[str] = []
        for element in _in_mounts(job, site).elements:
            task = _task(job, element, site)
            try:
                with _file(task) as path:
                    launch = ["sky", "jobs", "launch", "--yes", "--detach-run", *_secrets(site), path]
                    called(launch, remedy=_NOTHING, seconds=3600)
                numbers.append(str(max(row["job_id"] for row in _queue() if row["job_name"] == task["name"])))
            except ValueError as error:
                if numbers:
                    stays = f"{error}; jobs {' '.join(numbers)} stay"
                    called(["sky", "jobs", "cancel", "--yes", *numbers], remedy=stays, seconds=600)
                raise
        return ",".join(numbers)

    def standing(self, record: Record) -> Standing:
        rows = {str(row["job_id"]): row for row in _queue()}
        return together([_standing(rows.get(number, {})) for number in _numbers(record)])

    def logs(self, record: Record, rank: int | None, follow: bool) -> Iterator[str]:
        """A rank's lines; None is the log of all nodes."""
        number = _numbers(record)[0]
        if follow:
            lines = _followed(["sky", "jobs", "logs", "--follow", "--tail", "0", number])
        else:
            command = ["sky", "jobs", "logs", "--no-follow", "--tail", "0", number]
            lines = iter(called(command, remedy=_REMEDY, seconds=600).splitlines(keepends=True))
        mark = f"[rank {rank}] "  # SkyPilot names the node before it
        return lines if rank is None else (line.partition(mark)[2] for line in lines if mark in line)

    def cancel(self, record: Record) -> None:
        called(["sky", "jobs", "cancel", "--yes", *_numbers(record)], remedy=_REMEDY, seconds=600)


def _task(job: Job, element: Element, site: Site) -> dict[str, Any]:
    """SkyPilot's task of one run; ValueError for what it could not do as asked."""
    settings = site.skypilot
    if not (settings.image or settings.setup):
        raise ValueError(
            "skypilot.image of the site is empty, and skypilot.setup too; the nodes need one to have earlybird"
        )
    if job.gpus_per_node and not settings.accelerator:
        raise ValueError("skypilot.accelerator of the site is empty; name the GPU, as H100")
    if job.minutes:
        raise ValueError("SkyPilot knows no limit of time; leave --time out")
    kept = {folder for folder, source in settings.mounts.items() if not source.startswith("copy:")}
    if not _lies_in(element.run_folder, kept):
        raise ValueError(
            f"the run folder {element.run_folder} lies in no mount, so it would go with the machine ([skypilot.mounts] "
            f"keeps {', '.join(sorted(kept)) or 'nothing'})"
        )
    for what, path in (("data", job.data), ("origin", job.origin)):
        if path and not _lies_in(path, settings.mounts):
            raise ValueError(f"the {what} {path} lies in no mount ([skypilot.mounts] of the site)")
    resources: dict[str, Any] = {"infra": settings.infra} if settings.infra else {}
    if job.gpus_per_node:
        resources["accelerators"] = {settings.accelerator: job.gpus_per_node}
    if job.cpus_per_node:
        resources["cpus"] = f"{job.cpus_per_node}+"
    if job.memory_per_node:
        amount, unit = int(job.memory_per_node[:-1]), job.memory_per_node[-1]
        resources["memory"] = f"{amount / 1024 if unit == 'M' else amount * (1024 if unit == 'T' else 1):g}+"
    if settings.image:
        resources["image_id"] = f"docker:{settings.image}"
    if settings.use_spot:
        resources["use_spot"] = True
    # A machine that is taken away does not count; a run that was asked to stop, and saved, neither.
    resources["job_recovery"] = {"max_restarts_on_errors": job.max_restarts, "recover_on_exit_codes": [PREEMPTED]}
    task: dict[str, Any] = {"name": f"{job.name}-{element.index}" if job.seeds else job.name, "num_nodes": job.nodes}
    task["resources"] = resources
    for folder, text in settings.mounts.items():
        mode, _, source = text.partition(":")
        if mode == "volume":
            task.setdefault("volumes", {})[folder] = source
        else:
            task.setdefault("file_mounts", {})[folder] = {"source": source, "mode": _MODES[mode]}
    task["envs"] = dict(sorted(job.variables(site.environment).items()))
    if settings.secrets:
        task["secrets"] = dict.fromkeys(settings.secrets)
    if settings.setup:
        task["setup"] = settings.setup
    node = [site.python or "python3", "-m", "deploy.node", "--rank-from", "SKYPILOT_NODE_RANK"]
    node += ["--run-folder", element.run_folder]
    torchrun = [*job.torchrun, f"--rdzv-id={task['name']}", "--tee=3", "--log-line-prefix-template=[rank ${rank}] "]
    torchrun += ["-m", "--", "trainer", *element.arguments]
    run = _RUN.format(port=site.ports.rendezvous)
    words = f"{array('node', node)}\n{array('torchrun', torchrun)}\n"
    task["run"] = f"# shellcheck disable=SC2016\n{words}{run}"  # what looks like a variable is meant for torchrun
    return task


def _in_mounts(job: Job, site: Site) -> Job:
    """The job with its run folder as the nodes see it: as it is where it lies in a mount, else in skypilot.runs."""
    if _lies_in(job.run_folder, site.skypilot.mounts) or not site.skypilot.runs:
        return job
    return job.moved_to(site.skypilot.runs)


def _lies_in(path: str, folders: Any) -> bool:
    return any(PurePosixPath(path).is_relative_to(folder) for folder in folders)


@contextmanager
def _file(task: dict[str, Any]) -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="earlybird-") as folder:
        path = Path(folder) / f"{task['name']}.yaml"
        path.write_text(to_yaml([task]), encoding="utf-8")
        yield str(path)


def _secrets(site: Site) -> list[str]:
    return [word for name in site.skypilot.secrets for word in ("--secret", name)]


def _queue() -> list[dict[str, Any]]:
    """Every managed job of this user."""
    said = called(["sky", "jobs", "queue", "--all", "--output", "json"], remedy=_REMEDY, seconds=300)
    try:
        rows = json.loads(said[said.index("[") :])
    except ValueError:
        raise ValueError(f"sky jobs queue gave no JSON but {said.strip()[:200]!r}; {_REMEDY}") from None
    return list(rows)


def _numbers(record: Record) -> list[str]:
    numbers, _, index = record.id.partition("_")
    return [numbers.split(",")[int(index)]] if index else numbers.split(",")


def _standing(row: dict[str, Any]) -> Standing:
    status = str(row.get("status") or "")
    if not status:
        return Standing("unknown")
    state: State = "failed" if status.startswith("FAILED") else _STATES.get(status, "running")
    return Standing(state, str(row.get("failure_reason") or row.get("details") or ""), str(row.get("infra") or ""))


def _followed(command: Sequence[str]) -> Iterator[str]:
    called(["sky", "--version"], remedy=_REMEDY)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as sky:
        assert sky.stdout is not None
        try:
            yield from sky.stdout
        finally:
            sky.terminate()
