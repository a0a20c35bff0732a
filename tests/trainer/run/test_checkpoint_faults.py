"""What disks and people do to checkpoints: full, out of quota, half deleted. The newest whole one is always found."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.run.checkpoint import CheckpointError, load_latest, save_checkpoint

CALLS = ("mkdir", "rename", "replace", "fsync", "open", "rmdir", "unlink")


def _tensors(iteration: int, size: int = 1000) -> dict[str, torch.Tensor]:
    return {"model.weight": torch.full((size,), float(iteration))}


def _save(run: Path, iteration: int, size: int = 1000, keep: int = 2) -> Path:
    return save_checkpoint(run, iteration, _tensors(iteration, size), {"iteration": iteration}, keep)


def _iteration(run: Path) -> int:
    found = load_latest(run)
    assert found is not None
    assert found.tensors["model.weight"].eq(found.iteration).all()
    return found.iteration


POINTERS: dict[str, Callable[[Path], object]] = {
    "stale": lambda latest: latest.write_text("step-0000001\n"),
    "dangling": lambda latest: latest.write_text("step-0000099\n"),
    "hostile": lambda latest: latest.write_text("../../../etc\n"),
    "gone": Path.unlink,
    "a folder": lambda latest: [change() for change in (latest.unlink, latest.mkdir)],
}


@pytest.mark.parametrize("pointer", POINTERS)
def test_the_pointer_is_for_people(tmp_path: Path, pointer: str) -> None:
    """`latest` may say what it likes: the folders are looked at."""
    for iteration in (1, 2):
        _save(tmp_path, iteration)
    latest = tmp_path / "checkpoints" / "latest"
    POINTERS[pointer](latest)
    assert _iteration(tmp_path) == 2
    if pointer != "a folder":
        assert _save(tmp_path, 3).name == latest.read_text().strip()


@pytest.mark.parametrize("left", [[], ["manifest.json"], ["tensors.safetensors"]], ids=["empty", "manifest", "tensors"])
def test_a_folder_that_is_half_deleted(tmp_path: Path, left: list[str]) -> None:
    for iteration in (1, 2, 3):
        _save(tmp_path, iteration, keep=0)
    for iteration in (2, 3):
        for file in (tmp_path / "checkpoints" / f"step-000000{iteration}").iterdir():
            if file.name not in left:
                file.unlink()
    found = load_latest(tmp_path)
    assert found is not None
    assert found.iteration == 1
    assert [name for name, _ in found.passed_over] == ["step-0000003", "step-0000002"]
    assert all("is missing" in reason for _, reason in found.passed_over)


@pytest.mark.parametrize("name", ["manifest.json", "tensors.safetensors"])
@pytest.mark.parametrize("kind", ["pipe", "device", "link", "folder", "longer"])
def test_what_is_no_file_of_the_folder(tmp_path: Path, name: str, kind: str) -> None:
    """To read a pipe or /dev/zero never ends, and a link leads to other people's files: passed over, each."""
    for iteration in (1, 2):
        folder = _save(tmp_path, iteration)
    file, elsewhere = folder / name, tmp_path / "elsewhere"
    file.rename(elsewhere)
    if kind == "pipe":
        os.mkfifo(file)
    elif kind in ("device", "link"):
        file.symlink_to("/dev/zero" if kind == "device" else elsewhere)
    elif kind == "folder":
        file.mkdir()
    else:
        file.write_bytes(elsewhere.read_bytes() + b"}")
    found = load_latest(tmp_path)
    assert found is not None
    assert found.iteration == 1
    ((_, reason),) = found.passed_over
    said = {
        "pipe": "is no ordinary file",
        "folder": "is no ordinary file",
        "longer": "(has more bytes|is not readable)",
    }
    assert re.search(rf"{name} .*{said.get(kind, 'it is a link')}", reason), reason


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO], ids=["full", "quota", "broken"])
@pytest.mark.parametrize("call", range(14))
def test_refused_at_every_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int, number: int) -> None:
    """The call-th operation on the file system fails, once: both checkpoints before stay whole, the next save works."""
    for iteration in (1, 2):
        _save(tmp_path, iteration)
    calls = iter(range(10_000))

    def refusing(operation: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            if next(calls) == call:
                raise OSError(number, os.strerror(number))
            return operation(*arguments, **options)

        return wrapped

    with monkeypatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, refusing(getattr(os, name)))
        try:
            _save(tmp_path, 3)
        except CheckpointError as error:
            assert os.strerror(number) in str(error)  # noqa: PT017
            assert (tmp_path / "checkpoints" / "step-0000001").is_dir() or _iteration(tmp_path) == 3
    assert next(calls) > call, "so many operations there are not: shorten the range"
    assert _iteration(tmp_path) in (2, 3)
    _save(tmp_path, 4)
    assert _iteration(tmp_path) == 4


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own with 1 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    made = mount and subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], capture_output=True)
    if not made or made.returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path) -> None:
    """400 kB each: two fit, a third does not while both are kept; with the older gone all goes on."""
    assert _save(small_disk, 1, size=100_000, keep=2).is_dir()
    assert _save(small_disk, 2, size=100_000, keep=2).is_dir()
    for iteration in (3, 4):
        with pytest.raises(
            CheckpointError, match=rf"step {iteration} could not .*No space.*step-0000002, is untouched"
        ):
            _save(small_disk, iteration, size=100_000)
        assert sorted(path.name for path in (small_disk / "checkpoints").iterdir()) == [
            "latest",
            "step-0000001",
            "step-0000002",
        ]
    assert _iteration(small_disk) == 2
    shutil.rmtree(small_disk / "checkpoints" / "step-0000001")
    _save(small_disk, 5, size=100_000)
    assert _iteration(small_disk) == 5
