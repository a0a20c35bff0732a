"""Manifests: valid by every published schema, as an expert would write them, and words that arrive as they were."""

from __future__ import annotations

import copy
import os
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deploy.job import Job
from deploy.jobset import jobset
from deploy.kubernetes import KubernetesTarget
from deploy.manifest import to_yaml
from deploy.pod import literal
from deploy.site import Site, site_from
from deploy.trainjob import trainjob
from tests.deploy.kubernetes_schemas import Crds, check_core, check_model, jobs_of

GOLDEN = Path(__file__).parent / "golden"
SCHEMAS = Path(os.environ.get("EARLYBIRD_SCHEMAS", Path(__file__).resolve().parents[3] / "shared" / "schemas"))

SITE: dict[str, Any] = {
    "environment": {"NCCL_SOCKET_IFNAME": "eth0"},
    "ports": {"telemetry": 9400},
    "kubernetes": {
        "namespace": "research",
        "image": "registry.example/earlybird:0.1.0",
        "image_secret": "registry",
        "queue": "gpus",
        "priority_class": "training",
        "service_account": "trainer",
        "shared_memory": "32Gi",
        "volumes": {
            "/runs": "pvc:runs/team",
            "/data": "s3:imagenet-bucket/ILSVRC2012",
            "/scratch": "hostPath:/mnt/nvme:ro",
        },
        "secrets": {"TOKEN": "tracking/token"},
        "resources": {"rdma/ib": "1"},
        "node_selector": {"node.kubernetes.io/instance-type": "p5.48xlarge"},
    },
}
JOB = Job(
    "imagenet-step4",
    ("train", "imagenet-msdnet-step4", "--set", "optim.update_batch=1024", "--set", "telemetry.port=9400"),
    "/runs/imagenet-step4",
    data="/data/imagenet.tar",
    nodes=8,
    min_nodes=6,
    gpus_per_node=8,
    cpus_per_node=64,
    memory_per_node="512G",
    minutes=2880,
    grace_seconds=90,
    environment={"NOTE": "costs $5, see $(hostname)"},
)
LEAST = {"kubernetes": {"image": "earlybird:1", "volumes": {"/runs": "pvc:runs"}}}
FORMS = {"trainjob": trainjob, "jobset": jobset}


@pytest.fixture(scope="session")
def crds() -> Crds:
    """The published CRDs (EARLYBIRD_SCHEMAS)."""
    if not SCHEMAS.is_dir():
        pytest.skip(f"EARLYBIRD_SCHEMAS: no folder {SCHEMAS}")
    return Crds(SCHEMAS)


def site(**kubernetes: Any) -> Site:
    return site_from(SITE | {"kubernetes": SITE["kubernetes"] | kubernetes})


def objects(form: str, job: Job = JOB, where: Site | None = None) -> list[dict[str, Any]]:
    return FORMS[form](job, job.elements[0], job.name, where or site())


@pytest.mark.parametrize("form", FORMS)
def test_golden(form: str) -> None:
    """The whole manifest, word for word; GOLDEN=write writes it anew."""
    path, text = GOLDEN / f"{form}.yaml", KubernetesTarget().render(JOB, site(api=form))
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text)
    assert text == path.read_text()


def made(form: str, size: str) -> list[dict[str, Any]]:
    return objects(form) if size == "whole" else objects(form, Job("a", ("train", "demo"), "/runs/a"), site_from(LEAST))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", ["whole", "least"])
def test_models_and_core_schemas_take_them(form: str, size: str) -> None:
    for thing in made(form, size):
        check_model(thing)
        if thing["kind"] != "TrainJob":
            for inner in jobs_of(thing):
                check_core(inner)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", ["whole", "least"])
def test_crds_take_them(form: str, size: str, crds: Crds) -> None:
    for thing in made(form, size):
        crds.check(thing)


WRONG = {
    "misspelt": (("spec", "failurePolicy", "maxRestart"), 1),
    "type": (("spec", "replicatedJobs", 0, "replicas"), "one"),
}


def spoilt(name: str) -> dict[str, Any]:
    (thing,) = copy.deepcopy(objects("jobset"))
    path, wrong = WRONG[name]
    inside: Any = thing
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = wrong
    return thing


@pytest.mark.parametrize("name", WRONG)
def test_the_models_refuse_what_is_wrong(name: str) -> None:
    with pytest.raises((AssertionError, ValueError)):
        check_model(spoilt(name))


@pytest.mark.parametrize("name", WRONG)
def test_the_crds_refuse_what_is_wrong(name: str, crds: Crds) -> None:
    with pytest.raises(AssertionError):
        crds.check(spoilt(name))


def test_a_rule_of_the_crds_is_asked(crds: Crds) -> None:
    """JobSet's rule that two ways of ordering jobs exclude each other."""
    (thing,) = copy.deepcopy(objects("jobset"))
    thing["spec"]["startupPolicy"] = {"startupPolicyOrder": "InOrder"}
    thing["spec"]["replicatedJobs"][0]["dependsOn"] = [{"name": "other", "status": "Ready"}]
    with pytest.raises(AssertionError, match="startupPolicy"):
        crds.check(thing)


def test_the_core_check_refuses_an_unknown_field() -> None:
    (job,) = jobs_of(objects("jobset")[0])
    job["spec"]["template"]["spec"]["hostname_"] = "x"
    with pytest.raises(Exception, match="hostname_"):
        check_core(job)


def test_a_bucket_is_a_volume_and_a_claim() -> None:
    from deploy.volumes import read_volumes

    made = [
        part
        for volume in read_volumes(SITE["kubernetes"]["volumes"])
        for part in volume.objects("a", "n", 10001, 10002)
    ]
    for part in made:
        check_core(part)
    volume, claim = made
    assert volume["spec"]["csi"]["volumeAttributes"] == {"bucketName": "imagenet-bucket"}
    assert "prefix ILSVRC2012/" in volume["spec"]["mountOptions"]
    assert claim["spec"]["volumeName"] == volume["metadata"]["name"] == "a-volume-1"


@pytest.mark.parametrize("form", FORMS)
def test_what_keeps_a_run_whole(form: str) -> None:
    """Disruptions count as no failure, what was refused or diverged is final, the grace is the run's own."""
    (inner,) = jobs_of(objects(form)[0])
    rules = inner["spec"]["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["Ignore", "Ignore", "FailJob"]
    assert rules[0]["onPodConditions"][0]["type"] == "DisruptionTarget"
    assert (rules[1]["onExitCodes"]["values"], rules[2]["onExitCodes"]["values"]) == ([75], [2, 3])
    pod = inner["spec"]["template"]["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] == 90
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert inner["spec"]["activeDeadlineSeconds"] == 2880 * 60


def test_the_pod_monitor_finds_the_pods() -> None:
    """deploy/prometheus/podmonitor.yaml goes by these labels and names of ports."""
    monitor = yaml.safe_load((Path(__file__).parents[2] / "deploy/prometheus/podmonitor.yaml").read_text())
    (inner,) = jobs_of(objects("jobset")[0])
    pod = inner["spec"]["template"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    asked = [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]]
    offered = [port["name"] for port in pod["spec"]["containers"][0]["ports"]]
    assert offered == ["rendezvous", *asked]
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == "9400"


def test_secrets_are_references() -> None:
    (token,) = [entry for entry in objects("jobset")[0]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"][
        "spec"]["containers"][0]["env"] if entry["name"] == "TOKEN"]  # fmt: skip
    assert token["valueFrom"]["secretKeyRef"] == {"name": "tracking", "key": "token"}
    with pytest.raises(ValueError, match="TOKEN is a variable of the job's environment too"):
        objects("jobset", Job("a", ("train", "demo"), "/runs/a", environment={"TOKEN": "x"}))


@pytest.mark.parametrize(
    ("job", "kubernetes", "message"),
    [
        ({"run_folder": "/home/me/runs/a"}, {}, "lies on no volume of the pod .* has /runs, /data, /scratch"),
        ({"run_folder": "/scratch/a"}, {}, "run folder /scratch/a lies on /scratch, which is mounted read-only"),
        ({"run_folder": "runs/a"}, {}, "the run folder is runs/a; give its absolute path"),
        ({"data": "/datas/x"}, {}, "the data /datas/x lies on no volume"),
        ({"name": "a" * 50}, {}, "has 50 characters; Kubernetes leaves it 48"),
        ({"memory_per_node": "16G"}, {"shared_memory": "16Gi"}, "shared_memory is 16Gi of 16G memory"),
        ({}, {"volumes": {"/runs": "nfs:x"}}, r'volumes: /runs = \'nfs:x\'; write "pvc:CLAIM'),
        ({}, {"volumes": {"/": "pvc:x"}}, "the mount must be an absolute path"),
        ({}, {"volumes": {"/runs": "pvc:../x"}}, "is no name"),
        ({}, {"volumes": {"/runs": "pvc:x/../y"}}, "must lead downwards"),
        ({}, {"volumes": {"/runs": "hostPath:home"}}, "a folder of the node begins with /"),
        ({}, {"user": 0}, "pods run not as root"),
        ({}, {"secrets": {"TOKEN": "abcdef"}}, 'write VARIABLE = "SECRET/KEY"'),
        ({}, {"api": "job"}, "must be auto, trainjob or jobset"),
        ({}, {"queue": "a b"}, "kubernetes.queue is 'a b'"),
        ({}, {"runs": "/home"}, "kubernetes.runs is /home, which lies on no volume"),
    ],
)
def test_refusals_are_one_line(job: dict[str, Any], kubernetes: dict[str, Any], message: str) -> None:
    given = {"name": "a", "arguments": ("train", "demo"), "run_folder": "/runs/a", **job}
    with pytest.raises(ValueError, match=message) as refusal:
        objects("jobset", Job(**given), site(**kubernetes))
    assert "\n" not in str(refusal.value)


def expanded(text: str, variables: dict[str, str]) -> str:
    """$(NAME) and $$ as Kubernetes reads them in arguments and values of variables; an unknown name stays."""
    found = re.compile(r"\$\$|\$\(([^)]*)\)")
    return found.sub(lambda part: "$" if part[0] == "$$" else variables.get(part[1], part[0]), text)


texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)
nasty = st.one_of(
    texts, st.lists(st.sampled_from(["$", "$$", "$(HOME)", "(", ")", "'", '"', "\n", " ", "a", "é"])).map("".join)
)


@given(nasty)
def test_kubernetes_expands_nothing(text: str) -> None:
    assert expanded(literal(text), {"HOME": "/root"}) == text


@example(["a\n\x85", "a\n\u2028b", "a\r\nb", "\n", " \n", "a \n b"])
@given(st.lists(nasty, min_size=1))
def test_words_survive_yaml(words: list[str]) -> None:
    assert yaml.safe_load(to_yaml([{"args": words}])) == {"args": words}


@settings(max_examples=50)
@given(nasty, nasty)
def test_words_of_a_job_arrive(argument: str, value: str) -> None:
    job = Job("a", ("train", "demo", "--set", argument), "/runs/a", environment={"V": value})
    (thing,) = yaml.load_all(to_yaml(objects("jobset", job, site_from(LEAST))), yaml.CSafeLoader)
    (inner,) = jobs_of(thing)
    (container,) = inner["spec"]["template"]["spec"]["containers"]
    words = [expanded(word, {"HOME": "/root"}) for word in container["args"]]
    assert words[words.index("train") :][:4] == ["train", "demo", "--set", argument]
    (found,) = [entry["value"] for entry in container["env"] if entry["name"] == "V"]
    assert expanded(found, {"HOME": "/root"}) == value
