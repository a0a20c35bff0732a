"""SkyPilot's tasks: a golden file, words that bash hands on as they were, refusals.

SkyPilot itself is no dependency. Where it is installed (EARLYBIRD_SKYPILOT names its python), its own loader reads the
task.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.job import Job
from deploy.record import Record
from deploy.site import Site, site_from
from deploy.skypilot import SkyPilotTarget

GOLDEN = Path(__file__).parent / "golden" / "skypilot.yaml"
TARGET = SkyPilotTarget()
SITE: dict[str, Any] = {
    "python": "/opt/earlybird/bin/python",
    "skypilot": {
        "infra": "aws/us-east-1",
        "accelerator": "H100",
        "image": "registry.example/earlybird:0.1.0",
        "use_spot": True,
        "runs": "/runs",
        "mounts": {"/runs": "cached:s3://bucket/runs", "/data": "copy:s3://bucket/imagenet"},
        "secrets": ["TOKEN"],
    },
}
JOB = Job(
    "imagenet-step4",
    ("train", "imagenet-msdnet-step4", "--set", "optim.update_batch=1024"),
    "/home/me/runs/imagenet-step4",
    data="/data/imagenet.tar",
    nodes=2,
    gpus_per_node=8,
    cpus_per_node=64,
    memory_per_node="512G",
    environment={"NOTE": "costs $5, see $(hostname)"},
)


def site(**skypilot: Any) -> Site:
    return site_from(SITE | {"skypilot": SITE["skypilot"] | skypilot})


def test_golden() -> None:
    """The whole task, word for word; GOLDEN=write writes it anew."""
    text = TARGET.render(JOB, site())
    if os.environ.get("GOLDEN") == "write":
        GOLDEN.write_text(text)
    assert text == GOLDEN.read_text()


def test_shellcheck_has_nothing_to_say() -> None:
    script = "#!/bin/bash\n" + yaml.safe_load(TARGET.render(JOB, site()))["run"]
    program = Path(sys.executable).parent / "shellcheck"  # of the dev dependencies
    done = subprocess.run([program, "-"], input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_skypilot_itself_reads_it(tmp_path: Path) -> None:
    python = os.environ.get("EARLYBIRD_SKYPILOT")
    if not python:
        pytest.skip("EARLYBIRD_SKYPILOT names no python that has SkyPilot")
    task = yaml.safe_load(TARGET.render(JOB, site()))
    del task["file_mounts"]  # whose buckets it would ask for
    task["secrets"] = {"TOKEN": "x"}
    (tmp_path / "task.yaml").write_text(yaml.safe_dump(task))
    script = (
        "import sky; task = sky.Task.from_yaml('task.yaml'); print(task.num_nodes, task.envs['NOTE'], *task.resources)"
    )
    home = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run([python, "-c", script], cwd=tmp_path, env=home, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("2 costs $5, see $(hostname) ")
    assert "'H100': 8" in done.stdout


def test_an_array_is_a_task_a_seed() -> None:
    job = Job("demo", ("train", "demo"), "/runs/demo", seeds=(3, 5))
    first, second = yaml.safe_load_all(TARGET.render(job, site()))
    assert (first["name"], second["name"]) == ("demo-0", "demo-1")
    assert "--set seed=5" in second["run"]
    assert "--run-folder /runs/demo/seed-5" in second["run"]
    assert "accelerators" not in first["resources"]


@pytest.mark.parametrize(
    ("job", "skypilot", "message"),
    [
        ({}, {"image": ""}, "skypilot.image of the site is empty, and skypilot.setup too"),
        ({"gpus_per_node": 1}, {"accelerator": ""}, "skypilot.accelerator of the site is empty"),
        ({"minutes": 5}, {}, "no limit of time; leave --time out"),
        ({"run_folder": "/home/me/a"}, {"runs": ""}, "lies in no mount, so it would go with the machine"),
        ({"run_folder": "/data/a"}, {}, "keeps /runs"),
        ({"data": "/datas/x"}, {}, "the data /datas/x lies in no mount"),
        ({}, {"mounts": {"/runs": "s3://bucket"}}, 'write "/FOLDER" = "MODE:SOURCE"'),
        ({}, {"mounts": {"/runs": "mount:s3://$HOME"}}, 'write "/FOLDER" = "MODE:SOURCE"'),
        ({}, {"secrets": ["abc=def"]}, "secrets themselves stay out"),
    ],
)
def test_refusals_are_one_line(job: dict[str, Any], skypilot: dict[str, Any], message: str) -> None:
    given = {"name": "a", "arguments": ("train", "demo"), "run_folder": "/runs/a", **job}
    with pytest.raises(ValueError, match=message) as refusal:
        TARGET.render(Job(**given), site(**skypilot))
    assert "\n" not in str(refusal.value)


def test_without_sky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for ask in (TARGET.check, TARGET.submit):
        with pytest.raises(ValueError, match="sky is not installed here"):
            ask(JOB, site())
    kept = Record("skypilot", "7", "demo", 0.0, "/runs/demo", "", site=site())
    for ask_of in (TARGET.standing, TARGET.cancel, lambda record: next(TARGET.logs(record, 0, True))):
        with pytest.raises(ValueError, match="sky is not installed"):
            ask_of(kept)


words = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12) | st.lists(
    st.sampled_from(["$", "$(date)", "`date`", "'", '"', "\n", " ", "\\", "!", "é", ",", ";", "&", "*"])
).map("".join)


@settings(max_examples=40)
@given(words, words)
def test_bash_hands_every_word_on(argument: str, folder: str) -> None:
    """The task's script, run by bash with a program that prints its words in place of python."""
    printer = f"{sys.executable} -c import sys; sys.stdout.write(chr(0).join(sys.argv[1:]))"
    job = Job("a", ("train", "demo", "--set", argument), f"/runs/a{folder}")
    (task,) = yaml.load_all(TARGET.render(job, site()), yaml.CSafeLoader)
    script = task["run"].replace("/opt/earlybird/bin/python\n", '"${PRINTER[@]}"\n', 1)
    program, option, code = printer.split(" ", 2)
    script = f"PRINTER=({program} {option} '{code}')\n{script}"
    environment = {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2", "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, check=True)
    got = done.stdout.decode().split("\0")
    assert got[:6] == ["-m", "deploy.node", "--rank-from", "SKYPILOT_NODE_RANK", "--run-folder", f"/runs/a{folder}"]
    assert got[6:9] == ["--head", "10.0.0.1:29400", "--"]
    assert got[got.index("trainer") :] == [
        "trainer",
        "train",
        "demo",
        "--set",
        argument,
        "--run-folder",
        f"/runs/a{folder}",
    ]
