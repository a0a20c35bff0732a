"""A job as a TrainJob of Kubeflow Trainer v2, and the runtime it goes by."""

from __future__ import annotations

from typing import Any

from deploy.job import Element, Job
from deploy.jobset import jobset_spec, metadata
from deploy.pod import command, environment, resources
from deploy.site import Site

API = "trainer.kubeflow.org/v1alpha1"


def trainjob(job: Job, element: Element, name: str, site: Site) -> list[dict[str, Any]]:
    """The TrainingRuntime, which says how pods run at this site, and the TrainJob, which says what runs in them."""
    spec = jobset_spec(job, element, name, site)
    # By this label Trainer knows which job of the set trains; it sets the number of its pods.
    step = {"trainer.kubeflow.org/trainjob-ancestor-step": "trainer"}
    nodes = spec["replicatedJobs"][0]
    nodes["template"] = {"metadata": {"labels": step}, **nodes["template"]}
    runtime = metadata(name, site, queued=False)
    runtime["labels"]["trainer.kubeflow.org/framework"] = "torch"
    trainer: dict[str, Any] = {"image": site.kubernetes.image, **command(job, element, name, site)}
    trainer |= {"env": environment(job, site), "numNodes": job.nodes}
    if asked := resources(job, site):
        trainer["resourcesPerNode"] = asked
    return [
        {
            "apiVersion": API,
            "kind": "TrainingRuntime",
            "metadata": runtime,
            # torchrun's own options are in the command; they go before the variables that Trainer sets.
            "spec": {"mlPolicy": {"numNodes": job.nodes, "torch": {}}, "template": {"spec": spec}},
        },
        {
            "apiVersion": API,
            "kind": "TrainJob",
            "metadata": metadata(name, site),
            "spec": {
                "runtimeRef": {"apiGroup": "trainer.kubeflow.org", "kind": "TrainingRuntime", "name": name},
                "trainer": trainer,
            },
        },
    ]
