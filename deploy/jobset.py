"""A job as a JobSet (jobset.sigs.k8s.io): one indexed Job whose pods are the nodes, behind a headless service."""

from __future__ import annotations

from typing import Any

from deploy.job import Element, Job
from deploy.node import DIVERGED, PREEMPTED, REFUSED
from deploy.pod import CONTAINER, command, container, environment, pod_template, resources
from deploy.site import Site


def jobset(job: Job, element: Element, name: str, site: Site) -> list[dict[str, Any]]:
    """The JobSet of one run of the job."""
    spec = jobset_spec(job, element, name, site)
    template = spec["replicatedJobs"][0]["template"]
    nodes = {"completionMode": "Indexed", "parallelism": job.nodes, "completions": job.nodes, **template["spec"]}
    template["spec"] = nodes
    whole = container(job, site) | command(job, element, name, site)
    whole |= {"env": environment(job, site), "resources": resources(job, site)}
    nodes["template"]["spec"]["containers"] = [whole]
    return [
        {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": metadata(name, site),
            "spec": spec,
        }
    ]


def jobset_spec(job: Job, element: Element, name: str, site: Site) -> dict[str, Any]:
    """What a JobSet and a runtime of Kubeflow Trainer have in common; its container lacks command and resources.

    A node that is lost comes back as a new pod of the same number and joins the others' rendezvous. What the cluster
    takes away (a drained node, a pod of higher priority) counts as no failure, and neither does a run that was asked to
    stop and saved; a run that diverged, or whose settings are refused, is not tried again.
    """
    template = pod_template(job, element, name, site)
    template["spec"]["containers"] = [container(job, site)]
    final = {"containerName": CONTAINER, "operator": "In", "values": [REFUSED, DIVERGED]}
    again = {"containerName": CONTAINER, "operator": "In", "values": [PREEMPTED]}
    nodes: dict[str, Any] = {
        "backoffLimit": job.max_restarts * job.nodes,  # the others end too where the head is lost
        "podReplacementPolicy": "Failed",  # the old pod is gone before the new one has its number
        "podFailurePolicy": {
            "rules": [
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "Ignore", "onExitCodes": again},
                {"action": "FailJob", "onExitCodes": final},
            ]
        },
        "template": template,
    }
    if job.is_elastic:  # nodes that never came, or came too late, are not waited for
        nodes["successPolicy"] = {"rules": [{"succeededIndexes": "0"}]}
    if job.minutes:
        nodes["activeDeadlineSeconds"] = 60 * job.minutes
    return {
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "successPolicy": {"operator": "All"},
        "failurePolicy": {"maxRestarts": 0},
        "replicatedJobs": [{"name": CONTAINER, "replicas": 1, "template": {"spec": nodes}}],
    }


def metadata(name: str, site: Site, queued: bool = True) -> dict[str, Any]:
    """Of the object that stands for the whole job; Kueue goes by its label."""
    labels = {"app.kubernetes.io/name": "earlybird", "app.kubernetes.io/instance": name}
    if site.kubernetes.queue and queued:
        labels["kueue.x-k8s.io/queue-name"] = site.kubernetes.queue
    namespace = {"namespace": site.kubernetes.namespace} if site.kubernetes.namespace else {}
    return {"name": name, **namespace, "labels": labels}
