"""What strangers hand over: configurations, manifests, tensors, indexes and archives, bent at random.

Whatever is in them ends with the program's own one-line error or works; nothing is written outside, nothing hangs.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import struct
import tarfile
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from dataloading.bad_images import BadImages
from dataloading.datasets.open import open_splits
from dataloading.datasets.prepared import read_prepared
from dataloading.header import BadImageError
from dataloading.index import Index
from dataloading.prepare import prepare
from dataloading.storage import Storage
from trainer.config import Config, read_config, resolve, to_dict
from trainer.learning.state import Progress, TrainState
from trainer.run import snapshot
from trainer.run.build import build_state
from trainer.run.checkpoint import load_latest, save_checkpoint
from trainer.run.distributed import Ranks
from trainer.run.folder import RunFolder
from trainer.run.manifest import CheckpointError
from trainer.run.resume import resume
from trainer.settings import setting_names

TWO_HUNDRED = settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
HOSTILE_NAMES = st.one_of(
    st.sampled_from(
        ["../out", "/tmp/out", "a/../../out", "..", ".", "", "x\0y", "-rf", "$(touch out)", "a\nb", "ü" * 90]
    ),
    st.text(max_size=12),
)
ALONE = Ranks(0, 1, 0, 1, torch.device("cpu"))
BASE = to_dict(resolve("demo", []))


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of every node of a JSON value but the root."""
    inside: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inside = list(value.items())
    elif isinstance(value, list):
        inside = list(enumerate(value))
    return [found for key, part in inside for found in ((*path, key), *_paths(part, (*path, key)))]


def _bent(value: Any, data: st.DataObject) -> Any:
    """A copy with one or two nodes replaced, removed or renamed."""
    bent = json.loads(json.dumps(value))
    for _ in range(data.draw(st.integers(1, 2))):
        paths = _paths(bent)
        if not paths:
            break
        *way, last = data.draw(st.sampled_from(paths))
        parent = bent
        for key in way:
            parent = parent[key]
        what = data.draw(st.sampled_from(["replace", "remove", "rename"]))
        if what == "replace" or isinstance(parent, list):
            parent[last] = data.draw(JSON | HOSTILE_NAMES)
        elif what == "remove":
            del parent[last]
        else:
            parent[data.draw(HOSTILE_NAMES)] = parent.pop(last)
    return bent


@TWO_HUNDRED
@given(st.data())
def test_configurations(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(_bent(BASE, data)))
        with suppress(ValueError):
            config = read_config(path)
            assert isinstance(config, Config)
            assert {type(value) for value in setting_names(config).values()} <= {str, int, float, bool, tuple}
        assert os.listdir(folder) == ["config.json"]


@TWO_HUNDRED
@given(st.sampled_from(sorted(setting_names(resolve("demo", [])))) | st.text(max_size=9), st.text(max_size=12))
def test_settings_on_the_command_line(name: str, value: str) -> None:
    with suppress(ValueError):
        resolve("demo", [f"{name}={value}"])


def _signed(content: dict[str, Any]) -> bytes:
    """As a stranger who can compute a sha-256 would."""
    content = {key: value for key, value in content.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return json.dumps({**content, "sha256": digest}).encode()


@TWO_HUNDRED
@given(st.data())
def test_manifests_of_checkpoints(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as run:
        folder = save_checkpoint(Path(run), 7, {"model.weight": torch.ones(3)}, {"state": {"iteration": 7}})
        before = json.loads((folder / "manifest.json").read_bytes())
        (folder / "manifest.json").write_bytes(_signed(_bent(before, data)))
        with suppress(CheckpointError):
            found = load_latest(Path(run))
            assert found is not None
            assert found.tensors["model.weight"].tolist() == [1, 1, 1]


@pytest.mark.parametrize("name", ["", "..", "../tensors", "/etc/passwd", "a/b", "a\0b", "a\ud800b", "a\nb"])
def test_names_in_a_manifest_are_names_in_its_folder(tmp_path: Path, name: str) -> None:
    folder = save_checkpoint(tmp_path, 7, {"model.weight": torch.ones(3)}, {"state": {"iteration": 7}})
    content = json.loads((folder / "manifest.json").read_bytes())
    content["files"][name] = content["files"]["tensors.safetensors"]
    (folder / "manifest.json").write_bytes(_signed(content))
    with pytest.raises(CheckpointError, match="no file of its folder"):
        load_latest(tmp_path)


@TWO_HUNDRED
@given(st.binary(max_size=200), JSON, st.booleans())
def test_tensors_of_checkpoints(tail: bytes, header: Any, well_formed: bool) -> None:
    """Of the right sha-256, and with anything in the file: a pickle does not run, a header does not reach outside."""
    with tempfile.TemporaryDirectory() as run:
        folder = save_checkpoint(Path(run), 7, {"model.weight": torch.ones(3)}, {})
        text = json.dumps({"model.weight": header} if well_formed else header).encode()
        payload = struct.pack("<Q", len(text)) + text + tail if len(tail) % 2 else tail
        (folder / "tensors.safetensors").write_bytes(payload)
        content = json.loads((folder / "manifest.json").read_bytes())
        content["files"]["tensors.safetensors"] = {"size": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
        (folder / "manifest.json").write_bytes(_signed(content))
        with suppress(CheckpointError):
            load_latest(Path(run))


@functools.cache
def _state() -> tuple[TrainState, dict[str, torch.Tensor], dict[str, Any]]:
    """A tiny net after one update, with what a checkpoint holds of it."""
    tiny = ["model.num_exits=2", "model.first_channels=4", "model.growth=2", "model.growth_factors=1,1"]
    config = resolve("demo", [*tiny, "model.bottleneck_factors=1,1", "model.classifier_channels=8"])
    state = build_state(config, 3, Progress(0, 9), ALONE)
    _update(state)
    state.advance()
    tensors, values = snapshot.take(state)
    return state, {name: tensor.clone() for name, tensor in tensors.items()}, values


def _update(state: TrainState) -> None:
    for optimizer in (state.optimizer, state.weight_net_optimizer):
        assert optimizer is not None
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()


@TWO_HUNDRED
@given(st.data())
def test_states_of_checkpoints(data: st.DataObject) -> None:
    """Whole, well signed, and not what training wrote: refused before an update, or as good as any."""
    state, tensors, values = _state()
    bent = dict(tensors)
    for _ in range(data.draw(st.integers(0, 2))):
        name = data.draw(st.sampled_from(sorted(bent)))
        value = bent.pop(name)
        way = data.draw(st.sampled_from(["gone", "renamed", "bytes", "half", "flat", "empty", "twice"]))
        if way == "renamed":
            group, _, rest = name.partition(".")
            names = [f"{group}.{rest}.x", f"{group}.x.{rest}", group, "", f"{group}..."]
            bent[data.draw(st.sampled_from(names))] = value
        elif way != "gone":
            made = {"bytes": value.to(torch.uint8), "half": value.to(torch.float16), "flat": value.reshape(-1)}
            made |= {"empty": value.new_empty(0), "twice": torch.stack([value, value])}
            bent[name] = made[way].contiguous()
    meta = {"data_fingerprint": "f", "state": values}
    with tempfile.TemporaryDirectory() as run:
        save_checkpoint(Path(run), 1, bent, _bent(meta, data) if data.draw(st.booleans()) else meta)
        images: Any = SimpleNamespace(fingerprint="f")
        with suppress(ValueError):
            found = resume(state, RunFolder(Path(run)), images, ALONE)
            assert found is not None
            assert state.progress.iteration == 1
            _update(state)


class Trap:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return Path.write_text, (Path("trapped"), "x")  # type: ignore[return-value]


def test_a_pickle_never_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for spring in (lambda file: torch.save(Trap(), file), lambda file: np.save(file, np.array([Trap()], dtype=object))):
        folder = save_checkpoint(tmp_path / "run", 7, {"model.weight": torch.ones(3)}, {})
        buffer = io.BytesIO()
        spring(buffer)
        payload = buffer.getvalue()
        (folder / "tensors.safetensors").write_bytes(payload)
        content = json.loads((folder / "manifest.json").read_bytes())
        content["files"]["tensors.safetensors"] = {"size": len(payload), "sha256": hashlib.sha256(payload).hexdigest()}
        (folder / "manifest.json").write_bytes(_signed(content))
        with pytest.raises(CheckpointError, match="not readable"):
            load_latest(tmp_path / "run")
        index = _index(tmp_path / f"index{len(payload)}")
        (index / "labels.npy").write_bytes(payload)
        with pytest.raises(ValueError, match=r"holds no (readable )?index"):
            Index.open(index)
    assert not (tmp_path / "trapped").exists()


def _index(folder: Path) -> Path:
    pixels = folder.with_suffix(".bin")
    np.zeros(40 * 12, np.uint8).tofile(pixels)
    Index.build(
        ["a", "b"],
        np.arange(10) % 2,
        [f"i{row}" for row in range(10)],
        sizes=np.full(10, 48),
        offsets=np.arange(10) * 48,
        containers=[str(pixels)],
        container=np.zeros(10),
        heights=np.full(10, 4),
        widths=np.full(10, 4),
        flags=np.full(10, 1),
    ).save(folder)
    return folder


@TWO_HUNDRED
@given(st.data())
def test_indexes(data: st.DataObject) -> None:
    """Manifest bent, or bytes of a column changed, in its header too: it is refused, or its rows are read or bad."""
    with tempfile.TemporaryDirectory() as home:
        folder = _index(Path(home) / "index")
        if data.draw(st.booleans()):
            path = folder / "manifest.json"
            path.write_text(json.dumps(_bent(json.loads(path.read_text()), data)))
        else:
            path = data.draw(st.sampled_from(sorted(folder.glob("*.npy"))))
            content = bytearray(path.read_bytes())
            for _ in range(data.draw(st.integers(1, 4))):
                content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
            path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
        try:
            index = Index.open(folder)
        except ValueError:
            return
        storage = Storage(index)
        images = BadImages(index, storage)
        for row in range(len(index)):
            with suppress(BadImageError, ValueError):
                storage.read_one(row)
                images.pixels(row)
        storage.close()


def _jpeg() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (20, 16), (200, 30, 60)).save(file, "JPEG")
    return file.getvalue()


@TWO_HUNDRED
@given(st.lists(st.tuples(HOSTILE_NAMES, st.sampled_from("fldhz")), max_size=5))
def test_members_of_archives(members: list[tuple[str, str]]) -> None:
    """Beside a few good images: any name, links, devices, folders. They are images of the set or nothing."""
    with tempfile.TemporaryDirectory() as home:
        source, inner = Path(home) / "set.tar", Path(home) / "work"
        inner.mkdir()
        with tarfile.open(source, "w", format=tarfile.PAX_FORMAT) as tar:
            good = [(f"{split}/{name}/{i}.jpg", "f") for split in ("train", "val") for name in "ab" for i in range(2)]
            for name, kind in (*good, *((f"train/a/{name}.jpg", kind) for name, kind in members)):
                member = tarfile.TarInfo(name.replace("\0", "0"))
                member.type = {"f": b"0", "l": b"2", "d": b"5", "h": b"1", "z": b"3"}[kind]
                member.linkname = "/etc/passwd" if kind in "lh" else ""
                member.size = len(_jpeg()) if kind == "f" else 0
                tar.addfile(member, io.BytesIO(_jpeg()) if kind == "f" else None)
        before = sorted(os.listdir(home))
        os.environ["XDG_CACHE_HOME"] = str(inner / "cache")
        try:
            splits = open_splits(source)
            assert len(splits.train) >= 4
            prepare(source, inner / "prepared")
            assert len(read_prepared(inner / "prepared").train) == len(splits.train)
        except ValueError as error:
            assert "\n" not in str(error)  # noqa: PT017
        assert sorted(os.listdir(home)) == before
        assert set(os.listdir(inner)) <= {"cache", "prepared"}
