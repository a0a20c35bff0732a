"""The container image: what can be told without building it. The steps that need no base image run for real."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """(KEYWORD, rest) of every instruction, continued lines joined."""
    text = "\n".join(line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#"))
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    return [(line.split()[0].upper(), line.split(None, 1)[1]) for line in lines if line.strip()]


def sent(path: Path) -> bool:
    """Whether .dockerignore lets a path of the repository into the build: the last pattern that fits decides."""
    kept = True
    for pattern in filter(None, ((ROOT / ".dockerignore").read_text()).splitlines()):
        if not pattern.startswith("#"):
            bare = pattern.removeprefix("!").removeprefix("**/")
            parts = [path.as_posix(), *(parent.as_posix() for parent in path.parents)]
            if any(fnmatch(part, bare) or ("**" in pattern and fnmatch(Path(part).name, bare)) for part in parts):
                kept = pattern.startswith("!")
    return kept


def test_a_linter_has_nothing_to_say() -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    assert program, "hadolint comes with the dev dependencies"
    done = subprocess.run([program, "--no-color", DOCKERFILE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_bases_are_pinned_and_the_last_stage_is_nobodys_root() -> None:
    stages: set[str] = set()
    arguments = dict(rest.split("=", 1) for keyword, rest in instructions() if keyword == "ARG")
    for keyword, rest in instructions():
        if keyword == "FROM":
            image, *name = rest.split()
            choices = [re.sub(r"\$\{APEX\}", choice, image) for choice in ("none", "source")]
            if not set(choices) <= stages:
                full = re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], image)
                assert re.fullmatch(r"nvidia/cuda:\d+\.\d+\.\d+-(runtime|devel)-ubuntu\d\d\.\d\d", full), full
            stages |= set(name[1:])
    last = [keyword for keyword, _ in instructions()]
    final = instructions()[len(last) - last[::-1].index("FROM") :]
    users = [rest for keyword, rest in final if keyword == "USER"]
    assert users == ["10001:10001"]
    assert final[-1] == ("ENTRYPOINT", '["earlybird"]')
    assert re.fullmatch("[0-9a-f]{40}", arguments["APEX_COMMIT"])
    assert not re.search(r"index-url|\bpypi\b|ADD |latest", DOCKERFILE.read_text())


def test_what_is_copied_is_there_and_is_sent() -> None:
    for keyword, rest in instructions():
        words = rest.split()
        if keyword == "COPY" and not words[0].startswith("--from"):
            for source in words[:-1]:
                assert (ROOT / source).exists(), source
                assert sent(Path(source)), f"{source} is in .dockerignore"
    for path in (".git", ".venv", "runs", "docs", "tests", "trainer/__pycache__/cli.pyc", "deploy/grafana/build.py"):
        assert not sent(Path(path)), path


def test_the_steps_that_need_no_image_work(tmp_path: Path) -> None:
    """The dependencies are read out of pyproject.toml, and what is copied makes a package with all four rooms."""
    command = next(rest for keyword, rest in instructions() if keyword == "RUN" and "tomllib" in rest)
    read, _, install = command.partition(" && ")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    subprocess.run(read, shell=True, cwd=tmp_path, check=True)
    wanted = (tmp_path / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("torch>=") for line in wanted)
    assert "--constraint constraints.txt" in install

    build = tmp_path / "build"
    for keyword, rest in instructions():
        if keyword == "COPY" and not rest.startswith("--from") and "constraints" not in rest:
            for source in rest.split()[:-1]:
                for file in [ROOT / source] if (ROOT / source).is_file() else (ROOT / source).rglob("*"):
                    path = file.relative_to(ROOT)
                    if file.is_file() and sent(path):
                        (build / path).parent.mkdir(parents=True, exist_ok=True)
                        shutil.copy(file, build / path)
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir"]
    subprocess.run([*wheel, tmp_path / "out", build], check=True, capture_output=True)
    (built,) = (tmp_path / "out").glob("*.whl")
    names = zipfile.ZipFile(built).namelist()
    for name in ("trainer/cli.py", "deploy/node.py", "dataloading/order.py", "kernels/backend.py"):
        assert name in names
    assert any(name.startswith("trainer/reporting/") and name.endswith(".html") for name in names)
    assert not any(name.startswith(("deploy/grafana", "tests")) for name in names)


@pytest.mark.parametrize("name", ["TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "MPLCONFIGDIR"])
def test_what_is_written_at_run_time_goes_where_any_user_may_write(name: str) -> None:
    environment = " ".join(rest for keyword, rest in instructions() if keyword == "ENV")
    assert re.search(rf"\b{name}=/tmp/", environment)
