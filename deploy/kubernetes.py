"""Jobs on Kubernetes, through kubectl."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from deploy.job import Job
from deploy.jobset import jobset
from deploy.manifest import to_yaml
from deploy.pod import CONTAINER, GPU
from deploy.record import Record
from deploy.site import Site
from deploy.target import ENDED, Standing, called, together
from deploy.trainjob import trainjob
from deploy.volumes import read_volumes, volume_of

_REMEDY = "see kubernetes.context of the site, and KUBECONFIG"
_NOTHING = "nothing was submitted"
_APIS = {"trainjob": "trainer.kubeflow.org/v1alpha1", "jobset": "jobset.x-k8s.io/v1alpha2"}
_TYPES = {"trainjob": "trainjobs.trainer.kubeflow.org", "jobset": "jobsets.jobset.x-k8s.io"}
MOST_PODS = 1000  # whose logs are followed at once
_PAUSE = 2.0  # seconds until the pods that follow are asked for
_PODS = "jobset.sigs.k8s.io/jobset-name={name}"
_INDEX = "batch.kubernetes.io/job-completion-index={index}"


class KubernetesTarget:
    """A job is a TrainJob where Kubeflow Trainer is there, else a JobSet; of an array, each run is one.

    Its id is KIND/NAME; a run of an array has its number appended, and is the object NAME-NUMBER.
    """

    def render(self, job: Job, site: Site) -> str:
        return to_yaml(self._objects(job, site, _kind(site)))

    def check(self, job: Job, site: Site) -> None:
        kubectl, kind = _kubectl(site), _kind(site, asks=True)
        objects = self._objects(job, site, kind)
        if site.kubernetes.queue:
            _is_there(kubectl, "localqueue.kueue.x-k8s.io", site.kubernetes.queue, "kubernetes.queue")
        if site.kubernetes.priority_class:
            _is_there(kubectl, "priorityclass", site.kubernetes.priority_class, "kubernetes.priority_class")
        for volume in read_volumes(site.kubernetes.volumes):
            if volume.kind == "pvc":
                _is_there(kubectl, "persistentvolumeclaim", volume.source, f"kubernetes.volumes, {volume.mount}")
        if site.kubernetes.check_nodes and job.gpus_per_node:
            _fits(job, site, kubectl)
        # Trainer asks for a TrainJob's runtime, which a dry run does not keep.
        asked = [part for part in objects if part["kind"] != "TrainJob"]
        _create(kubectl, asked, "--dry-run=server")

    def submit(self, job: Job, site: Site) -> str:
        kubectl, kind = _kubectl(site), _kind(site, asks=True)
        created: list[str] = []
        try:
            for part in self._objects(job, site, kind):
                name = _create(kubectl, [part], "-o", "name")
                created.append(name.strip())
        except ValueError as error:
            if created:
                _delete(kubectl, reversed(created), f"{error}; what was created stays: {' '.join(created)}")
            raise
        return f"{kind}/{job.name}"

    def standing(self, record: Record) -> Standing:
        kubectl = _kubectl(record.site)
        return together([_standing(kubectl, *name) for name in _names(record)])

    def logs(self, record: Record, rank: int | None, follow: bool) -> Iterator[str]:
        """A rank's lines, from whatever node it ran on; None is the log of node 0."""
        _, name = _names(record)[0]
        selector = _PODS.format(name=name) + ("" if rank is not None else f",{_INDEX.format(index=0)}")
        command = [*_kubectl(record.site, timeout=""), "logs", f"--selector={selector}", f"--container={CONTAINER}"]
        command += ["--tail=-1", f"--max-log-requests={MOST_PODS}"]
        lines = _followed(command, lambda: self.standing(record).state in ENDED) if follow else _logged(command)
        mark = f"[rank {rank}] "
        return lines if rank is None else (line.removeprefix(mark) for line in lines if line.startswith(mark))

    def cancel(self, record: Record) -> None:
        """Deletes the job's objects; the pods are told, and have their grace to save."""
        kubectl, objects = _kubectl(record.site), []
        for kind, name in _names(record):
            if not _found(kubectl, _TYPES[kind], name):
                continue
            objects += [f"{_TYPES[kind]}/{name}"]
            objects += [f"trainingruntimes.trainer.kubeflow.org/{name}"] if kind == "trainjob" else []
            for volume in read_volumes(record.site.kubernetes.volumes):
                parts = volume.objects(name, "", 1, 1)
                objects += [f"{part['kind'].lower()}/{part['metadata']['name']}" for part in reversed(parts)]
        if not objects:
            raise ValueError(f"job {record.id} is not there to cancel: the cluster knows it no more")
        _delete(kubectl, objects, "")

    def _objects(self, job: Job, site: Site, kind: str) -> list[dict[str, Any]]:
        """In the order in which they can be created; ValueError for what no cluster could run."""
        settings = site.kubernetes
        if not settings.image:
            raise ValueError(
                "kubernetes.image of the site is empty; name the image that the pods run (deploy/Dockerfile)"
            )
        job, build = _in_pods(job, site), trainjob if kind == "trainjob" else jobset
        objects: list[dict[str, Any]] = []
        for element in job.elements:
            name = f"{job.name}-{element.index}" if job.seeds else job.name
            for volume in read_volumes(settings.volumes):
                objects += volume.objects(name, settings.namespace, settings.user, settings.group)
            objects += build(job, element, name, site)
        return objects


def _in_pods(job: Job, site: Site) -> Job:
    """The job with its run folder as the pods see it: as it is where it lies on a volume, else in kubernetes.runs."""
    if volume_of(job.run_folder, read_volumes(site.kubernetes.volumes)) or not site.kubernetes.runs:
        return job
    return job.moved_to(site.kubernetes.runs)


def _kubectl(site: Site, timeout: str = "30s") -> list[str]:
    given = {"context": site.kubernetes.context, "namespace": site.kubernetes.namespace, "request-timeout": timeout}
    return ["kubectl", *(f"--{name}={value}" for name, value in given.items() if value)]


def _kind(site: Site, asks: bool = False) -> str:
    """trainjob or jobset; the cluster is asked where the site leaves it open, or to make sure."""
    chosen, kubectl = site.kubernetes.api, _kubectl(site)
    if chosen != "auto" and not asks:
        return chosen
    for kind in _APIS if chosen == "auto" else (chosen,):
        try:
            called([*kubectl, "get", "--raw", f"/apis/{_APIS[kind]}"], remedy=_REMEDY)
        except ValueError as error:
            if "(NotFound)" not in str(error):
                raise
        else:
            return kind
    missing = " nor ".join(_APIS.values()) if chosen == "auto" else _APIS[chosen]
    raise ValueError(
        f"the cluster does not serve {missing} (Kubeflow Trainer v2 or JobSet is to be installed there); {_REMEDY}"
    )


def _found(kubectl: Sequence[str], kind: str, name: str) -> dict[str, Any] | None:
    """The object as the cluster has it, None where it has none."""
    try:
        return json.loads(called([*kubectl, "get", kind, name, "-o", "json"], remedy=_REMEDY))
    except ValueError as error:
        if "(NotFound)" in str(error):
            return None
        raise


def _is_there(kubectl: Sequence[str], kind: str, name: str, setting: str) -> None:
    try:
        found = _found(kubectl, kind, name)
    except ValueError as error:
        if "(Forbidden)" in str(error):  # who may submit need not be allowed to look
            return
        raise
    if found is None:
        raise ValueError(f"the cluster has no {kind.partition('.')[0]} {name!r} ({setting} of the site); {_NOTHING}")


def _fits(job: Job, site: Site, kubectl: Sequence[str]) -> None:
    selector = ",".join(f"{key}={value}" for key, value in site.kubernetes.node_selector.items())
    try:
        said = called([*kubectl, "get", "nodes", f"--selector={selector}", "-o", "json"], remedy=_REMEDY)
    except ValueError as error:
        if "(Forbidden)" in str(error):
            return
        raise
    open_nodes = [node for node in json.loads(said)["items"] if not node.get("spec", {}).get("unschedulable")]
    gpus = [int(node["status"].get("allocatable", {}).get(GPU, "0")) for node in open_nodes]
    if sum(number // job.gpus_per_node for number in gpus) < job.nodes:
        most = ", ".join(map(str, sorted(gpus, reverse=True)[:8])) or "none"
        raise ValueError(
            f"--gpus is {job.gpus_per_node} on each of {job.nodes} nodes, but the cluster's nodes have {most} "
            f"for pods; ask for fewer, or set kubernetes.check_nodes=false where nodes come when they are asked for"
        )


def _standing(kubectl: Sequence[str], kind: str, name: str) -> Standing:
    found = _found(kubectl, _TYPES[kind], name)
    if found is None:
        return Standing("unknown")
    status = found.get("status", {})
    conditions = {row["type"]: row for row in status.get("conditions", []) if row.get("status") == "True"}
    for word, state in (("Failed", "failed"), ("Complete", "completed"), ("Completed", "completed")):
        if row := conditions.get(word):
            return Standing(state, row.get("reason", ""))  # type: ignore[arg-type]
    if row := conditions.get("Suspended"):
        return Standing("pending", row.get("reason", "") or "Suspended")
    pods = json.loads(called([*kubectl, "get", "pods", "-l", _PODS.format(name=name), "-o", "json"], remedy=_REMEDY))
    running = [pod for pod in pods["items"] if pod.get("status", {}).get("phase") == "Running"]
    nodes = ",".join(sorted({pod["spec"].get("nodeName", "") for pod in running}))
    return Standing("running", "", nodes) if running else Standing("pending", _waits_for(pods["items"]))


def _waits_for(pods: list[dict[str, Any]]) -> str:
    """Why a pod has not started, in the cluster's words."""
    for pod in pods:
        status = pod.get("status", {})
        for one in status.get("containerStatuses", []):
            if reason := one.get("state", {}).get("waiting", {}).get("reason"):
                return str(reason)
        for row in status.get("conditions", []):
            if row["type"] == "PodScheduled" and row["status"] == "False":
                return str(row.get("message") or row.get("reason", ""))
    return ""


def _names(record: Record) -> list[tuple[str, str]]:
    """(kind, name) of every object that the record stands for."""
    kind, _, name = record.id.partition("/")
    whole, _, index = name.partition("_")
    if index:
        return [(kind, f"{whole}-{index}")]
    return [(kind, f"{whole}-{i}") for i in range(len(record.run_folders))] or [(kind, whole)]


def _create(kubectl: Sequence[str], objects: list[dict[str, Any]], *options: str) -> str:
    try:
        return called([*kubectl, "create", *options, "-f", "-"], stdin=to_yaml(objects), remedy=_NOTHING)
    except ValueError as error:
        if "(AlreadyExists)" not in str(error):
            raise
        raise ValueError(
            f"{error}: earlybird cancel removes a job that is over too, and --name gives another name"
        ) from None


def _delete(kubectl: Sequence[str], objects: Any, remedy: str) -> None:
    called([*kubectl, "delete", "--ignore-not-found", "--wait=false", *objects], remedy=remedy or _REMEDY)


def _logged(command: Sequence[str]) -> Iterator[str]:
    yield from called(command, remedy=_REMEDY, seconds=600).splitlines(keepends=True)


def _followed(command: Sequence[str], ended: Callable[[], bool]) -> Iterator[str]:
    """Lines as they come, from pods that follow each other too, until the job has ended."""
    since: list[str] = []
    while True:
        over = ended()  # asked first: what comes between the answer and the end of the log is still read
        with subprocess.Popen(
            [*command, *([] if over else ["--follow"]), *since], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, errors="replace",
        ) as kubectl:  # fmt: skip
            assert kubectl.stdout is not None
            try:
                for line in kubectl.stdout:
                    yield line
                    since = [f"--since-time={datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"]
            finally:
                kubectl.terminate()
        if over:
            return
        time.sleep(_PAUSE)
