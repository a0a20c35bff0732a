"""The scripts of jobs on Slurm and on this machine: as written by hand, and true to every word that goes in."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from deploy.job import Job
from deploy.local import LocalTarget
from deploy.site import Site, Slurm, site_from
from deploy.slurm_script import render

GOLDEN = Path(__file__).parent / "golden"
PROGRAMS = Path(sys.executable).parent  # shellcheck comes with the dev dependencies
TRAIN = ("train", "imagenet-msdnet-step4", "--set", "run.epochs=100")
PLAIN = Job("demo", ("train", "demo"), "/runs/demo", nodes=2, gpus_per_node=2)
FULL = Job(
    "step4", TRAIN, "/runs/step 4", data="/data/imagenet", nodes=8, min_nodes=6, gpus_per_node=8, cpus_per_node=64,
    memory_per_node="512G", minutes=1440, grace_seconds=120, seeds=(0, 1, 2), environment={"WHO": "it's me"},
    origin="/runs/first/seed-{seed}",
)  # fmt: skip
SITE = Site(
    python="/opt/earlybird/bin/python",
    environment={"NCCL_SOCKET_IFNAME": "ib0"},
    slurm=Slurm(partition="gpu", account="vision", modules=("cuda/12",), staging="$SLURM_TMPDIR/data"),
)
PYXIS = Site(slurm=Slurm(container_image="/images/earlybird.sqsh", container_mounts=("/scratch:/scratch",)))
APPTAINER = Site(slurm=Slurm(container_image="/images/earlybird.sif", container_kind="apptainer"))
SCRIPTS = {
    "slurm-demo": render(PLAIN, Site(), "/opt/earlybird/bin/python"),
    "slurm-array": render(FULL, SITE, SITE.python),
    "slurm-pyxis": render(PLAIN, PYXIS, "python3"),
    "slurm-apptainer": render(FULL, APPTAINER, "python3"),
    "local-array": LocalTarget().render(Job("demo", TRAIN, "/runs/d", seeds=(0, 1)), Site(python="/opt/python")),
}
# Whatever may stand in a name, a value or a path, and the signs that shells make something of.
WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30)
NASTY = st.sampled_from(
    ["$(touch x)", "`id`", "a b", "it's", '"', "\\", "a\nb", "*", "ü", "-n", "$HOME", "#", "%j", ";"]
)


@pytest.mark.parametrize("name", SCRIPTS)
def test_as_written_by_hand(name: str, tmp_path: Path) -> None:
    path = GOLDEN / f"{name}.sh"
    if os.environ.get("EARLYBIRD_WRITE_GOLDEN"):
        path.write_text(SCRIPTS[name])
    assert SCRIPTS[name] == path.read_text(), "EARLYBIRD_WRITE_GOLDEN=1 writes the files anew, for reading"
    subprocess.run(["bash", "-n", path], check=True)
    checked = subprocess.run([PROGRAMS / "shellcheck", path], capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout


def arrays(script: str, before: str, *names: str, environment: dict[str, str] | None = None) -> list[list[str]]:
    """bash's own reading of a script's arrays, up to the line that begins with `before`."""
    lines = script.split(f"\n{before}", 1)[0]
    dump = "import json,sys; print(json.dumps(sys.argv[1:]))"
    ask = "\n".join(f'"{sys.executable}" -c \'{dump}\' "${{{name}[@]}}"' for name in names)
    done = subprocess.run(
        ["bash", "-c", f"mkdir() {{ :; }}; touch() {{ :; }}; rm() {{ :; }}; scontrol() {{ :; }}\n{lines}\n{ask}"],
        env={"PATH": os.environ["PATH"], "SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n1", **(environment or {})},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


@settings(max_examples=40)
@given(value=WORDS | NASTY, folder=WORDS | NASTY, data=WORDS | NASTY)
@example(value="a\nb", folder="it's $(touch x)", data="%j `id`")
def test_words_arrive_as_they_are_or_are_refused(value: str, folder: str, data: str) -> None:
    job = Job(
        "demo", ("train", "demo", "--set", f"x={value}"), f"/runs/{folder}".rstrip("/"), data=f"/data/{data}",
        origin=f"/{data}/{{seed}}", seeds=(7,), environment={"V": value},
    )  # fmt: skip
    (whole,) = job.elements
    try:
        script = render(job, Site(), "/opt/python")
    except ValueError as error:
        told = str(error)
        unfit = any(ord(char) < 32 or ord(char) == 127 or char in "\x85\u2028\u2029\\" for char in folder)
        assert ("\n" in told, unfit) == (False, True), told
        return
    index = {"SLURM_ARRAY_TASK_ID": "0"}
    arguments, exported = arrays(script, "port=", "arguments", "V", environment=index)
    head, seed, tail = list(job.arguments), ["--set", "seed=7"], ["--run-folder", whole.run_folder]
    begins = ["--from", f"/{data}/7".replace("{seed}", "7")]
    assert arguments == [*head, "--data", job.data, *begins, *seed, *tail] == list(whole.arguments)
    assert exported == [value]
    directives = [line for line in script.splitlines() if line.startswith("#SBATCH")]
    assert all(line.startswith("#SBATCH --") for line in directives)


@settings(max_examples=30)
@given(value=WORDS | NASTY, folder=WORDS | NASTY)
def test_a_local_script_is_true_to_every_word(value: str, folder: str) -> None:
    job = Job("demo", ("train", "demo", "--set", f"x={value}"), f"/runs/{folder}", environment={"V": value})
    script = LocalTarget().render(job, Site(python="/opt/python"))
    arguments, exported = arrays(
        script, "train '/runs" if "\ntrain '/runs" in script else "train /runs", "arguments", "V"
    )
    assert arguments == list(job.elements[0].arguments)
    assert exported == [value]


@pytest.fixture
def on_node(tmp_path: Path) -> Callable[[str], subprocess.Popen[str]]:
    """(what srun does) -> the batch script of a job with staged data, begun beside stand-ins of Slurm's programs. The
    file `asked` lists what scontrol and scancel were called with."""

    def begin(srun: str) -> subprocess.Popen[str]:
        programs = tmp_path / "programs"
        programs.mkdir()
        asked = f'echo "$(basename "$0") $*" >> {tmp_path}/asked\n'
        known = 'case "$*" in *"show hostnames"*) echo n1 ;; *"show job"*) echo JobState=RUNNING ;; esac\n'
        for name, text in {"srun": srun, "scontrol": asked + known, "scancel": asked, "sleep": ":\n"}.items():
            (programs / name).write_text(f"#!/bin/bash\n{text}\n")
            (programs / name).chmod(0o755)
        job = Job("demo", ("train", "demo"), str(tmp_path / "run"), data=str(tmp_path / "data"))
        (tmp_path / "data").touch()
        (tmp_path / "batch.sh").write_text(render(job, Site(slurm=Slurm(staging=str(tmp_path / "disk"))), "python3"))
        environment = {"PATH": f"{programs}:{os.environ['PATH']}", "SLURM_JOB_ID": "12", "SLURM_JOB_NODELIST": "n1"}
        return subprocess.Popen(["bash", tmp_path / "batch.sh"], env=environment, stdout=subprocess.PIPE, text=True)

    return begin


@pytest.mark.parametrize(("number", "asked"), [(signal.SIGUSR1, "scontrol requeue 12"), (signal.SIGTERM, "scancel 12")])
def test_a_signal_while_data_is_copied_is_heard(
    on_node: Callable[[str], subprocess.Popen[str]], tmp_path: Path, number: signal.Signals, asked: str
) -> None:
    copies = tmp_path / "copies"
    script = on_node(f"touch {copies}; exec {shutil.which('sleep')} 30")
    end = time.monotonic() + 20
    while not copies.exists():
        assert time.monotonic() < end
        time.sleep(0.02)
    script.send_signal(number)
    printed, _ = script.communicate(timeout=20)
    assert script.returncode == 1
    assert (tmp_path / "asked").read_text().splitlines()[-1] == asked
    assert "ended: without a summary, srun" in printed


def test_what_was_refused_is_not_started_again(on_node: Callable[[str], subprocess.Popen[str]], tmp_path: Path) -> None:
    logs = tmp_path / "run" / "logs"
    logs.mkdir(parents=True)
    (logs / "refused").write_text("of an earlier job\n")
    trains = f'case "$*" in *trainer*) [ ! -e {logs}/refused ] && echo "a is 0" > {logs}/refused; exit 1 ;; esac'
    script = on_node(trains)
    printed, _ = script.communicate(timeout=20)
    assert script.returncode == 1
    assert printed.splitlines()[-1] == "refused: a is 0"
    assert "requeue" not in (tmp_path / "asked").read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "Ünsafe"}, "--name"),
        ({"name": "a" * 51}, "at most 50"),
        ({"nodes": 0}, "nodes is 0"),
        ({"nodes": 2, "min_nodes": 3}, "min_nodes is 3"),
        ({"memory_per_node": "lots"}, "64G"),
        ({"seeds": (1, 1)}, "different"),
        ({"data": "a\0b"}, "NUL"),
        ({"run_folder": "\udcff"}, "UTF-8"),
        ({"environment": {"A-B": ""}}, "environment variable"),
    ],
)
def test_no_such_job(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        Job(**{"name": "demo", "arguments": ("train", "demo"), "run_folder": "/runs/demo", **changes})  # type: ignore[arg-type]
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"slurm": {"partion": "gpu"}}, "did you mean slurm.partition"),
        ({"slurm": {"modules": "cuda"}}, "list of strings"),
        ({"ports": {"rendezvous": "x"}}, "a whole number"),
        ({"ports": {"rendezvous": 80}}, "1024"),
        ({"slurm": 3}, "must be a table"),
        ({"slurm": {"container_kind": "docker"}}, "pyxis or apptainer"),
    ],
)
def test_a_profile_without_effect_is_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        site_from(values)
