"""The pod that is one node of a job."""

from __future__ import annotations

from typing import Any

from deploy.job import Element, Job
from deploy.site import Site
from deploy.volumes import read_volumes, volume_of

CONTAINER = "node"  # Kubeflow Trainer finds the container, and the job of the set, by this name
GPU = "nvidia.com/gpu"
HEAD = "{name}-node-0-0.{name}"  # of a JobSet's headless service: pod 0 of job 0
LONGEST_POD = 63 - len("-node-0-") - len("-xxxxx")
_MEBIBYTES = {"M": 1, "G": 1024, "T": 1024**2, "Mi": 1, "Gi": 1024, "Ti": 1024**2}


def pod_template(job: Job, element: Element, name: str, site: Site) -> dict[str, Any]:
    """Template of the pods, without their containers; by its labels the PodMonitor of deploy/prometheus finds them.

    ValueError for a job that would lose its run folder with the pod, or whose data or origin is not there.
    """
    settings, volumes = site.kubernetes, read_volumes(site.kubernetes.volumes)
    for what, path in (("run folder", element.run_folder), ("data", job.data), ("origin", job.origin)):
        on = volume_of(path, volumes)
        if path and not path.startswith("/"):
            raise ValueError(f"the {what} is {path}; give its absolute path in the pod")
        if path and on is None:
            mounts = ", ".join(volume.mount for volume in volumes) or "none"
            raise ValueError(f"the {what} {path} lies on no volume of the pod ([kubernetes.volumes] has {mounts})")
        if what == "run folder" and on is not None and on.read_only:
            raise ValueError(f"the run folder {path} lies on {on.mount}, which is mounted read-only")
    longest = LONGEST_POD - len(str(job.nodes - 1))
    if len(name) > longest:
        raise ValueError(
            f"the job's name {name} has {len(name)} characters; Kubernetes leaves it {longest} "
            f"beside the numbers of pods (--name gives another)"
        )
    annotations = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"}
    if port := site.ports.telemetry:
        annotations |= {"prometheus.io/scrape": "true", "prometheus.io/port": str(port)}
    spec: dict[str, Any] = {
        "restartPolicy": "Never",  # the job's policy of failed pods asks for it
        "terminationGracePeriodSeconds": job.grace_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": settings.user,
            "runAsGroup": settings.group,
            "fsGroup": settings.group,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
    }
    if settings.service_account:
        spec["serviceAccountName"] = settings.service_account
    if settings.priority_class:
        spec["priorityClassName"] = settings.priority_class
    if settings.image_secret:
        spec["imagePullSecrets"] = [{"name": settings.image_secret}]
    if settings.node_selector:
        spec["nodeSelector"] = dict(settings.node_selector)
    if job.gpus_per_node:
        spec["tolerations"] = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]
    shared = {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shared_memory}}
    spec["volumes"] = [shared, *(volume.claimed(name) for volume in volumes)]
    labels = {"app.kubernetes.io/name": "earlybird", "app.kubernetes.io/instance": name}
    return {"metadata": {"labels": labels, "annotations": annotations}, "spec": spec}


def container(job: Job, site: Site) -> dict[str, Any]:
    """What of the container does not depend on the command: ports, mounts, rights."""
    ports = [{"name": "rendezvous", "containerPort": site.ports.rendezvous}]
    if first := site.ports.telemetry:
        ports += [{"name": f"metrics-{i}", "containerPort": first + i} for i in range(job.processes_per_node)]
    mounts = [{"name": "shared-memory", "mountPath": "/dev/shm"}]
    return {
        "name": CONTAINER,
        "image": site.kubernetes.image,
        "ports": ports,
        "volumeMounts": [*mounts, *(volume.mounted for volume in read_volumes(site.kubernetes.volumes))],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }


def command(job: Job, element: Element, name: str, site: Site) -> dict[str, list[str]]:
    """`command` and `args` of the container: no shell reads them, and Kubernetes expands no variable in them."""
    head = HEAD.format(name=name) if job.nodes > 1 else "localhost"
    own = ["--rank-from", "JOB_COMPLETION_INDEX", "--head", f"{head}:{site.ports.rendezvous}"]
    own += ["--run-folder", element.run_folder]
    options = [*job.torchrun, f"--rdzv-id={name}", "--tee=3", "--log-line-prefix-template=[rank ${rank}] "]
    trains = [*element.arguments]
    if site.ports.telemetry:  # which the command line has made a setting; scrapers come from outside the pod
        given = {word.partition("=")[0] for word in job.arguments}
        for setting, value in (("telemetry.address", "0.0.0.0"), ("telemetry.run", name)):
            trains += [] if setting in given else ["--set", f"{setting}={value}"]
    python = site.python or "python3"
    return {
        "command": [literal(python), "-m", "deploy.node"],
        "args": [literal(word) for word in (*own, "--", *options, "-m", "--", "trainer", *trains)],
    }


def environment(job: Job, site: Site) -> list[dict[str, Any]]:
    """Variables of the processes; secrets by reference alone."""
    values = job.variables(site.environment)
    entries: list[dict[str, Any]] = [{"name": name, "value": literal(values[name])} for name in sorted(values)]
    for name, reference in site.kubernetes.secrets.items():
        secret, _, key = reference.partition("/")
        if name in values:
            raise ValueError(f"kubernetes.secrets: {name} is a variable of the job's environment too; keep one of them")
        entries.append({"name": name, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}})
    return entries


def resources(job: Job, site: Site) -> dict[str, Any]:
    """What one pod asks for; ValueError where its shared memory is more than its memory, which it counts to."""
    requests: dict[str, str] = {"cpu": str(job.cpus_per_node)} if job.cpus_per_node else {}
    limits: dict[str, str] = {}
    if job.memory_per_node:
        if mebibytes(site.kubernetes.shared_memory) >= mebibytes(job.memory_per_node):
            raise ValueError(
                f"kubernetes.shared_memory is {site.kubernetes.shared_memory} of {job.memory_per_node} memory a node; "
                f"it counts to that, so leave some for the processes"
            )
        limits["memory"] = f"{job.memory_per_node}i"
    if job.gpus_per_node:
        limits[GPU] = str(job.gpus_per_node)
    limits |= site.kubernetes.resources
    requests |= limits
    return {key: value for key, value in (("requests", requests), ("limits", limits)) if value}


def mebibytes(size: str) -> int:
    """Of `64G`, as Slurm counts, or `64Gi`, as Kubernetes writes the same."""
    digits = size.rstrip("MGTi")
    return int(digits) * _MEBIBYTES[size.removeprefix(digits)]


def literal(text: str) -> str:
    """`text` as Kubernetes hands it on unchanged: it expands $(VARIABLE) in arguments and values, and reads $$ as $."""
    return text.replace("$", "$$")
