from __future__ import annotations

import errno
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from trainer.run.checkpoint import (
    CheckpointConfig,
    CheckpointError,
    load_latest,
    read_checkpoint,
    save_checkpoint,
    snapshot,
    step_folders,
)
from trainer.run.manifest import read_manifest

ROOT = Path(__file__).resolve().parents[3]


def _tensors(iteration: int, size: int = 1000) -> dict[str, Tensor]:
    """Values that say which iteration they are of."""
    return {"model.weight": torch.full((size,), float(iteration)), "generator.cpu": torch.get_rng_state()}


def _names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_round_trip_is_exact_in_every_dtype(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
    tensors = {
        "model.conv.weight": weight,
        "model.half": torch.randn(5).bfloat16(),
        "model.double": torch.randn(5, dtype=torch.float64),
        "model.num_batches_tracked": torch.tensor(7),
        "model.empty": torch.zeros(0, 3),
        "model.nan": torch.tensor([float("nan"), float("inf"), -0.0]),
        "model.view": weight[1:3, ::2],
        "model.shared": weight,
        "model.flags": torch.tensor([True, False]),
        "generator.cpu": torch.get_rng_state(),
    }
    meta = {"progress": {"iteration": 123, "lr": 0.1 + 0.2}, "epochs": [1, 2], "of": {"10": 1, "9": 2}, "scaler": None}
    folder = save_checkpoint(tmp_path, 123, tensors, {**meta, "epochs": (1, 2), "of": {10: 1, 9: 2}})
    found = load_latest(tmp_path)
    assert found is not None
    assert (found.folder, found.iteration, found.meta, found.passed_over) == (folder, 123, meta, ())
    assert found.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        got = found.tensors[name]
        assert (got.dtype, got.shape) == (tensor.dtype, tensor.shape)
        assert got.contiguous().view(-1).view(torch.uint8).equal(tensor.contiguous().view(-1).view(torch.uint8)), name
    weight.copy_(found.tensors["model.conv.weight"])
    assert weight.is_contiguous(memory_format=torch.channels_last), "copying in keeps the net's memory format"
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-0000123\n"
    assert found.versions["torch"] == torch.__version__


def test_a_snapshot_does_not_move_with_the_net() -> None:
    weight = torch.zeros(3, requires_grad=True)
    taken = snapshot({"weight": weight})
    with torch.no_grad():
        weight += 1
    assert taken["weight"].tolist() == [0, 0, 0]
    assert not taken["weight"].requires_grad


def test_keeps_the_newest_and_what_was_renamed(tmp_path: Path) -> None:
    assert load_latest(tmp_path) is None
    for iteration in range(1, 4):
        save_checkpoint(tmp_path, iteration, _tensors(iteration), {}, keep=2)
    (tmp_path / "checkpoints" / "step-0000002").rename(tmp_path / "checkpoints" / "best")
    for iteration in range(4, 7):
        save_checkpoint(tmp_path, iteration, _tensors(iteration), {}, keep=2)
    assert _names(tmp_path) == ["best", "latest", "step-0000005", "step-0000006"]
    assert read_checkpoint(tmp_path / "checkpoints" / "best").iteration == 2
    save_checkpoint(tmp_path, 7, _tensors(7), {}, keep=0)
    assert len(step_folders(tmp_path / "checkpoints")) == 3


def test_the_same_step_again_never_overwrites(tmp_path: Path) -> None:
    first = save_checkpoint(tmp_path, 5, _tensors(5), {"copy": 1})
    second = save_checkpoint(tmp_path, 5, _tensors(5), {"copy": 2})
    assert (first.name, second.name) == ("step-0000005", "step-0000005-2")
    found = load_latest(tmp_path)
    assert found is not None
    assert found.meta == {"copy": 2}
    assert (tmp_path / "checkpoints" / "latest").read_text() == "step-0000005-2\n"


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "flipped byte": (lambda folder: _flip(folder / "tensors.safetensors"), "does not match the sha-256"),
    "truncated": (lambda folder: os.truncate(folder / "tensors.safetensors", 100), "has 100 bytes"),
    "empty": (lambda folder: os.truncate(folder / "tensors.safetensors", 0), "has 0 bytes"),
    "no tensors": (lambda folder: (folder / "tensors.safetensors").unlink(), "tensors.safetensors is missing"),
    "no manifest": (lambda folder: (folder / "manifest.json").unlink(), "manifest.json is missing"),
    "torn manifest": (lambda folder: os.truncate(folder / "manifest.json", 50), "manifest.json is not readable"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_falls_back_to_the_previous_and_says_why(tmp_path: Path, damage: str) -> None:
    for iteration in (10, 20, 30):
        save_checkpoint(tmp_path, iteration, _tensors(iteration), {})
    spoil, reason = DAMAGE[damage]
    spoil(tmp_path / "checkpoints" / "step-0000030")
    found = load_latest(tmp_path)
    assert found is not None
    assert found.iteration == 20
    assert [name for name, _ in found.passed_over] == ["step-0000030"]
    assert reason in found.passed_over[0][1]
    # Training goes on from 20 and saves with keep 1: the damaged newer folder may not crowd out the good one.
    save_checkpoint(tmp_path, 25, _tensors(25), {}, keep=1)
    found = load_latest(tmp_path)
    assert found is not None
    assert (found.iteration, found.passed_over) == (25, ())
    assert [name for name in _names(tmp_path) if name.startswith("passed-over-step-0000030")]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 7))
def test_no_flipped_bit_of_a_manifest_changes_what_is_read(place: int, bit: int) -> None:
    with tempfile.TemporaryDirectory() as run:
        folder = save_checkpoint(Path(run), 7, _tensors(7, 2), {"lr": 0.1, "name": "demo"})
        before = read_manifest(folder)
        content = bytearray((folder / "manifest.json").read_bytes())
        content[place % len(content)] ^= 1 << bit
        (folder / "manifest.json").write_bytes(content)
        with suppress(CheckpointError):
            assert read_manifest(folder) == before


def test_refuses_to_start_over_when_every_checkpoint_is_damaged(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path, 1, _tensors(1), {})
    _flip(folder / "tensors.safetensors")
    with pytest.raises(CheckpointError, match=r"no whole checkpoint left .* delete .* to start over"):
        load_latest(tmp_path)


@pytest.mark.parametrize("config", [{"every": "1day"}, {"keep": -1}])
def test_config_refuses(config: dict) -> None:
    with pytest.raises(ValueError, match=r"checkpoint\.(every|keep) is"):
        CheckpointConfig(**config)


# --- a disk that refuses ---


@contextmanager
def _file_size_limit(num_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_refused_write_leaves_the_last_good_one(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, 1, _tensors(1), {})
    refused = r"step 2 could not .* step-0000001, is untouched"
    with _file_size_limit(50_000), pytest.raises(CheckpointError, match=refused):
        save_checkpoint(tmp_path, 2, _tensors(2, size=100_000), {})
    assert _names(tmp_path) == ["latest", "step-0000001"]
    assert save_checkpoint(tmp_path, 2, _tensors(2), {}).name == "step-0000002", "goes on once there is room"


@pytest.mark.parametrize("call", range(5))
def test_disk_full_at_every_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    save_checkpoint(tmp_path, 1, _tensors(1), {}, keep=1)
    real, calls = os.fsync, iter(range(99))

    def fsync(handle: int) -> None:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CheckpointError, match="No space left on device"):
        save_checkpoint(tmp_path, 2, _tensors(2), {}, keep=1)
    assert not [name for name in _names(tmp_path) if name.startswith(".")]
    found = load_latest(tmp_path)
    assert found is not None
    assert found.iteration in (1, 2)
    assert (tmp_path / "checkpoints" / "step-0000001").is_dir()


# --- a process that dies ---


def test_killed_at_any_instant(tmp_path: Path) -> None:
    """A child of many forks (torch is imported once) kills savers; see _torture."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["crash_points"] >= 8, "the crash points were not reached"
    assert report["killed"] == 20
    assert report["saved"] > 1


def _valid_iteration(run: Path) -> int:
    found = load_latest(run)
    assert found is not None, f"{run} has no checkpoint"
    assert found.passed_over == (), found.passed_over
    for folder in step_folders(run / "checkpoints"):
        read_checkpoint(folder)  # an older one that was being deleted has another name
    assert found.tensors["model.weight"].eq(found.iteration).all()
    assert found.meta == {"iteration": found.iteration}
    return found.iteration


def _die_before(run: Path, call: int) -> bool:
    """Save in a fork that ends at its `call`-th operation on the file system; whether it got that far."""
    process = os.fork()
    if process == 0:
        calls = iter(range(10_000))

        def deadly(operation):  # type: ignore[no-untyped-def]
            def wrapped(*args, **kwargs):  # type: ignore[no-untyped-def]
                if next(calls) == call:
                    os._exit(9)
                return operation(*args, **kwargs)

            return wrapped

        for name in ("mkdir", "rename", "replace", "fsync", "open", "rmdir", "unlink"):
            setattr(os, name, deadly(getattr(os, name)))
        save_checkpoint(run, 2, _tensors(2), {"iteration": 2}, keep=1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 9


def _torture(folder: Path) -> None:
    torch.set_num_threads(1)  # a fork inherits no worker threads
    call, seen = 0, set()
    while True:
        run = folder / f"point-{call}"
        save_checkpoint(run, 1, _tensors(1), {"iteration": 1}, keep=1)
        died = _die_before(run, call)
        seen.add(_valid_iteration(run))
        save_checkpoint(run, 3, _tensors(3), {"iteration": 3}, keep=1)  # the next run clears what the dead one left
        assert _names(run) == ["latest", "step-0000003"], _names(run)
        shutil.rmtree(run)
        if not died:
            break
        call += 1
    assert seen == {1, 2}

    run, rng = folder / "random", random.Random(0)
    began = time.monotonic()
    save_checkpoint(run, 1, _tensors(1, 50_000), {"iteration": 1})
    one_save, killed = time.monotonic() - began, 0
    while killed < 20:
        newest = _valid_iteration(run)
        process = os.fork()
        if process == 0:
            for iteration in range(newest + 1, newest + 10_000):
                save_checkpoint(run, iteration, _tensors(iteration, 50_000), {"iteration": iteration}, keep=2)
        time.sleep(rng.uniform(0, 4 * one_save))
        os.kill(process, 9)
        os.waitpid(process, 0)
        killed += 1
    print(json.dumps({"crash_points": call, "killed": killed, "saved": _valid_iteration(run)}))


if __name__ == "__main__":
    _torture(Path(sys.argv[1]))
