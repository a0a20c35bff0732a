"""submit, standing, logs, cancel: a real kubectl against an emulated API (objects are kept, nothing runs)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
import yaml

from deploy.job import Job
from deploy.kubernetes import KubernetesTarget
from deploy.manifest import to_yaml
from deploy.record import Record
from deploy.site import Site, site_from

EMULATOR = Path(__file__).parent / "emulated_cluster.py"
PROGRAMS = Path(sys.executable).parent  # kubectl comes with the dev dependencies
TARGET = KubernetesTarget()
JOB = Job("demo", ("train", "demo"), "/home/me/runs/demo", data="/data/x", nodes=2, gpus_per_node=4)
CLAIMS = ["PersistentVolumeClaim/runs", "PersistentVolumeClaim/data"]
Start = Callable[..., "Api"]


@dataclass
class Api:
    """An emulated cluster, and the kubectl that talks to it."""

    url: str

    def kubectl(self, *words: str, stdin: str = "") -> str:
        return subprocess.run(
            [PROGRAMS / "kubectl", *words], input=stdin, capture_output=True, text=True, check=True
        ).stdout

    def create(self, *names: str, **node: Any) -> None:
        """Objects by KIND/NAME; `node` is the status of a node."""
        versions = {"LocalQueue": "kueue.x-k8s.io/v1beta1"}
        things = []
        for name in names:
            kind, _, called = name.partition("/")
            thing = {"apiVersion": versions.get(kind, "v1"), "kind": kind, "metadata": {"name": called}}
            things.append(thing | ({"status": node} if kind == "Node" else {}))
        self.kubectl("create", "-f", "-", stdin=to_yaml(things))

    def pod(self, job: str, index: int, node: str, printed: str) -> None:
        name = f"{job}-node-0-{index}-abcde"
        labels = {"jobset.sigs.k8s.io/jobset-name": job, "batch.kubernetes.io/job-completion-index": str(index)}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": labels}}
        pod |= {"spec": {"nodeName": node, "containers": [{"name": "node"}]}, "status": {"phase": "Running"}}
        self.kubectl("create", "-f", "-", stdin=to_yaml([pod]))
        urlopen(Request(f"{self.url}/logs/{name}", data=printed.encode(), method="PUT")).close()

    def names(self, *types: str) -> list[str]:
        return [name for kind in types for name in self.kubectl("get", kind, "-o", "name").split()]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts an emulated cluster: `refused` names a kind that its admission refuses, `absent` those it lacks."""
    monkeypatch.setenv("PATH", f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}")
    running: list[subprocess.Popen[str]] = []

    def run(refused: str = "", absent: tuple[str, ...] = ()) -> Api:
        command = [sys.executable, EMULATOR, refused, *absent]
        running.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
        url = json.loads(running[-1].stdout.readline())  # type: ignore[union-attr]
        monkeypatch.setenv("KUBECONFIG", str(config(tmp_path, url)))
        return Api(url)

    yield run
    for process in running:
        process.communicate("", timeout=20)


def config(folder: Path, url: str) -> Path:
    path = folder / "kubeconfig.yaml"
    context = {"cluster": "c", "user": "u", "namespace": "default"}
    whole = {"apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": {}}]}
    whole |= {"clusters": [{"name": "c", "cluster": {"server": url}}], "contexts": [{"name": "c", "context": context}]}
    path.write_text(yaml.safe_dump(whole))
    return path


def site(**kubernetes: Any) -> Site:
    volumes = {"/runs": "pvc:runs", "/data": "pvc:data:ro"}
    return site_from({"kubernetes": {"image": "earlybird:1", "runs": "/runs", "volumes": volumes} | kubernetes})


def record(job: Job, where: Site) -> Record:
    folders = tuple(element.run_folder for element in job.elements) if job.seeds else ()
    known = {"nodes": job.nodes, "gpus_per_node": job.gpus_per_node, "run_folders": folders, "site": where}
    return Record("kubernetes", TARGET.submit(job, where), job.name, 0.0, job.run_folder, "", **known)


@contextmanager
def refused(message: str) -> Iterator[None]:
    with pytest.raises(ValueError, match=message) as refusal:
        yield
    assert "\n" not in str(refusal.value)


def test_from_submit_to_cancel(start: Start) -> None:
    api = start()
    api.create(*CLAIMS, "Node/g1", allocatable={"nvidia.com/gpu": "8"})
    TARGET.check(JOB, site())
    assert api.names("trainjobs", "trainingruntimes") == [], "a check changes nothing"
    kept = record(JOB, site())
    assert kept.id == "trainjob/demo"
    sent = list(yaml.safe_load_all(TARGET.render(JOB, site())))
    for thing in sent:
        found = json.loads(api.kubectl("get", thing["kind"].lower(), "demo", "-o", "json"))
        assert found["spec"] == thing["spec"], "what arrives is what was shown"
    assert TARGET.standing(kept).state == "pending"

    api.pod("demo", 0, "g1", "torchrun's own\n[rank 0] one\n[rank 3] three\n")
    api.pod("demo", 1, "g2", "[rank 4] four\n")
    standing = TARGET.standing(kept)
    assert (standing.state, standing.nodes) == ("running", "g1,g2")
    assert list(TARGET.logs(kept, 3, False)) == ["three\n"]
    assert list(TARGET.logs(kept, 4, False)) == ["four\n"]
    assert next(TARGET.logs(kept, None, False)) == "torchrun's own\n"

    failed = {"type": "Failed", "status": "True", "reason": "PodFailurePolicy", "message": "", "lastTransitionTime": ""}
    api.kubectl("patch", "trainjob", "demo", "--type=merge", f"-p={json.dumps({'status': {'conditions': [failed]}})}")
    assert TARGET.standing(kept).state == "failed"
    assert TARGET.standing(kept).reason == "PodFailurePolicy"
    assert "".join(TARGET.logs(kept, 4, True)) == "four\n", "a log that is followed ends with its job"
    TARGET.cancel(kept)
    assert api.names("trainjobs", "trainingruntimes") == []
    assert TARGET.standing(kept).state == "unknown"
    with refused("is not there to cancel"):
        TARGET.cancel(kept)


def test_an_array_where_trainer_is_absent(start: Start) -> None:
    api = start(absent=("TrainJob", "TrainingRuntime"))
    job = Job("demo", ("train", "demo"), "/runs/demo", seeds=(3, 5))
    where = site(volumes={"/runs": "pvc:runs", "/data": "s3:bucket"}, runs="")
    api.create("PersistentVolumeClaim/runs")
    TARGET.check(job, where)
    kept = record(job, where)
    assert kept.id == "jobset/demo"
    assert api.names("jobsets") == ["jobset.jobset.x-k8s.io/demo-0", "jobset.jobset.x-k8s.io/demo-1"]
    second = kept.of(1, "/runs/demo/seed-5")
    done = {"type": "Completed", "status": "True", "reason": "AllJobsCompleted"}
    api.kubectl("patch", "jobset", "demo-1", "--type=merge", f"-p={json.dumps({'status': {'conditions': [done]}})}")
    assert TARGET.standing(second).state == "completed"
    assert TARGET.standing(kept).state == "pending"
    (words,) = [
        part["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["args"]
        for part in yaml.safe_load_all(TARGET.render(job, where))
        if part["metadata"]["name"] == "demo-1" and part["kind"] == "JobSet"
    ]
    assert "seed=5" in words
    TARGET.cancel(second)
    assert api.names("jobsets", "persistentvolumes") == [
        "jobset.jobset.x-k8s.io/demo-0",
        "persistentvolume/demo-0-volume-1",
    ]
    TARGET.cancel(kept)
    assert api.names("jobsets", "persistentvolumes", "persistentvolumeclaims") == ["persistentvolumeclaim/runs"]


def test_a_refusal_midway_leaves_nothing(start: Start) -> None:
    api = start(refused="TrainJob")
    api.create(*CLAIMS, "Node/g1", allocatable={"nvidia.com/gpu": "8"})
    TARGET.check(JOB, site())
    with refused("no TrainJob here; nothing was submitted"):
        TARGET.submit(JOB, site())
    assert api.names("trainingruntimes") == []


def test_a_name_that_is_taken_stays_what_it_was(start: Start) -> None:
    api = start()
    kept = record(JOB, site())
    with refused("already exists; nothing was submitted: earlybird cancel removes"):
        TARGET.submit(JOB, site())
    assert len(api.names("trainjobs", "trainingruntimes")) == 2
    assert TARGET.standing(kept).state == "pending"


def test_what_the_cluster_lacks_is_told_before(start: Start) -> None:
    api = start()
    with refused("no persistentvolumeclaim 'runs' .kubernetes.volumes, /runs of the site.; nothing was submitted"):
        TARGET.check(JOB, site())
    api.create(*CLAIMS, "Node/g1", "Node/g2", allocatable={"nvidia.com/gpu": "2"})
    with refused("no localqueue 'gpus' .kubernetes.queue"):
        TARGET.check(JOB, site(queue="gpus"))
    with refused("no priorityclass 'high' .kubernetes.priority_class"):
        TARGET.check(JOB, site(priority_class="high"))
    with refused("--gpus is 4 on each of 2 nodes, but the cluster's nodes have 2, 2 for pods"):
        TARGET.check(JOB, site())
    TARGET.check(JOB, site(check_nodes=False))
    with refused("kubernetes.image of the site is empty"):
        TARGET.check(JOB, site(image=""))
    assert api.names("trainjobs", "trainingruntimes") == []


def test_who_may_not_look_may_still_submit(start: Start) -> None:
    api = start(refused="Node")
    api.create(*CLAIMS)
    TARGET.check(JOB, site())


def test_the_same_words_as_on_every_target(start: Start, tmp_path: Path) -> None:
    """The command line: submit --json, status, cancel, by the run folder alone."""
    api = start()
    api.create("PersistentVolumeClaim/runs")
    profile, run = tmp_path / "site.toml", tmp_path / "demo"
    profile.write_text('[kubernetes]\nimage = "a:1"\nruns = "/runs"\nvolumes = { "/runs" = "pvc:runs" }\n')

    def earlybird(*words: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "trainer", *words, "--json"]
        return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    place = ["--target", "kubernetes", "--site", str(profile), "--run-folder", str(run)]
    told = earlybird("submit", "demo", *place, "--nodes", "2", "--set", "run.grace=90s")
    assert (told["target"], told["id"]) == ("kubernetes", "trainjob/demo")
    found = json.loads(api.kubectl("get", "trainingruntime", "demo", "-o", "json"))
    (nodes,) = found["spec"]["template"]["spec"]["replicatedJobs"]
    assert nodes["template"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 90, "run.grace"
    assert earlybird("status", str(run))["job"]["state"] == "pending"
    earlybird("cancel", str(run))
    assert api.names("trainjobs", "trainingruntimes") == []


def test_a_cluster_without_either_api(start: Start) -> None:
    start(absent=("TrainJob", "TrainingRuntime", "JobSet"))
    with refused("does not serve trainer.kubeflow.org/v1alpha1 nor jobset.x-k8s.io/v1alpha2"):
        TARGET.check(JOB, site())
    with refused("does not serve jobset.x-k8s.io/v1alpha2"):
        TARGET.check(JOB, site(api="jobset"))


def test_no_cluster_and_no_kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{PROGRAMS}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("KUBECONFIG", str(config(tmp_path, "http://127.0.0.1:9")))
    for ask in (TARGET.check, TARGET.submit, TARGET.render):
        with refused("127.0.0.1:9 was refused"):
            ask(JOB, site())
    monkeypatch.setenv("PATH", str(tmp_path))
    with refused("kubectl is not installed here"):
        TARGET.check(JOB, site())


def test_kubectl_reads_every_word_as_it_was(start: Start) -> None:
    """What YAML's versions take for numbers, truth or nothing, and what is hard to quote, in one object."""
    api = start()
    words = ["y", "n", "on", "-m", "--", "1e3", "0x1f", "0o17", "017", "1:30", "1_000", ".5", "~", "null", "=", "<<"]
    words += [
        "a\nb",
        " a",
        "a ",
        "\ta",
        "é",
        "日本",
        "😀",
        "\u2028",
        "\x07",
        "\x85",
        "'",
        '"',
        "\\n",
        "#",
        "- a",
        "a: b",
        "|",
    ]
    words += [
        "$(HOME)",
        "$$",
        "${rank}",
        "*a",
        "&a",
        "!a",
        "%a",
        "@a",
        "`a`",
        "{a}",
        "[a]",
        "a,b",
        "?",
        "-",
        "---",
        "...",
    ]
    words += ["a\n\x85", "a\n\u2028b", "a\r\nb", "\n", " \n", "a \n b", "\n\na", "a\n\n", "\ufeff", "\ta\n"]
    job = Job("demo", ("train", "demo", *words), "/runs/demo")
    TARGET.submit(job, site(api="jobset"))
    found = json.loads(api.kubectl("get", "jobset", "demo", "-o", "json"))
    (sent,) = yaml.safe_load_all(TARGET.render(job, site(api="jobset")))
    assert found["spec"] == sent["spec"]
    args = found["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["containers"][0]["args"]
    assert [word.replace("$$", "$") for word in args[args.index("train") :]][2 : 2 + len(words)] == words


def test_shown_manifests_and_the_pod_monitor_apply(start: Start) -> None:
    """`earlybird submit --dry-run | kubectl apply -f -`, and deploy/prometheus/podmonitor.yaml."""
    api = start()
    said = api.kubectl("apply", "-f", "-", stdin=TARGET.render(JOB, site()))
    assert said.splitlines() == [
        "trainingruntime.trainer.kubeflow.org/demo created",
        "trainjob.trainer.kubeflow.org/demo created",
    ]
    monitor = Path(__file__).parents[2] / "deploy/prometheus/podmonitor.yaml"
    assert "podmonitor.monitoring.coreos.com/earlybird created" in api.kubectl("apply", "-f", str(monitor))
    found = json.loads(api.kubectl("get", "podmonitor", "earlybird", "-o", "json"))
    ports = [endpoint["port"] for endpoint in found["spec"]["podMetricsEndpoints"]]
    assert ports == [f"metrics-{rank}" for rank in range(8)]
