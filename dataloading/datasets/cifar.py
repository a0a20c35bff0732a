"""CIFAR-10 and CIFAR-100 from their official archives, Python or binary version, packed or unpacked."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from dataloading.cache import cache_folder, once
from dataloading.datasets.splits import Splits, watch
from dataloading.index import PIXELS, Index

SIDE, PLANE = 32, 32 * 32


@dataclass(frozen=True)
class _Version:
    name: str
    train: tuple[str, ...]
    val: str
    meta: str
    num_classes: int
    coarse_labels: int = 0  # binary CIFAR-100 puts a byte of the coarse label before the fine one


_VERSIONS = {
    "cifar-10-batches-py": _Version(
        "cifar10", tuple(f"data_batch_{number}" for number in range(1, 6)), "test_batch", "batches.meta", 10
    ),
    "cifar-100-python": _Version("cifar100", ("train",), "test", "meta", 100),
    "cifar-10-batches-bin": _Version(
        "cifar10", tuple(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin", "batches.meta.txt", 10
    ),
    "cifar-100-binary": _Version("cifar100", ("train.bin",), "test.bin", "fine_label_names.txt", 100, 1),
}


def is_cifar(path: Path) -> bool:
    """An official archive, the folder it unpacks to, or that folder's parent."""
    return _find(path) is not None


def read_cifar(path: Path) -> Splits:
    """Both splits as raw pixels [32, 32, 3] in one file of the cache folder; CIFAR-100 with its fine labels.

    The test batch is the validation split. Raises ValueError for missing, short or unexpected files.
    """
    found = _find(path)
    assert found is not None
    version, read = found
    parts = {
        "train": [_batch(path, file, version, read) for file in version.train],
        "val": [_batch(path, version.val, version, read)],
    }
    classes = _class_names(path, version, read)
    pixels = np.concatenate([part for split in parts.values() for part, _ in split])
    key = hashlib.sha256(pixels.data).hexdigest()[:32]
    folder = once(cache_folder() / "cifar" / key, lambda temporary: pixels.tofile(temporary / "pixels.bin"))
    container = str(folder / "pixels.bin")

    def index(split: str, first: int) -> Index:
        labels = np.concatenate([labels for _, labels in parts[split]])
        side = np.full(len(labels), SIDE)
        return Index.build(
            classes,
            labels,
            [f"{split}/{row:05d}" for row in range(len(labels))],
            offsets=(first + np.arange(len(labels))) * 3 * PLANE,
            sizes=side * side * 3,
            containers=(container,),
            container=np.zeros(len(labels)),
            heights=side,
            widths=side,
            flags=np.full(len(labels), PIXELS),
        )

    train = index("train", 0)
    return Splits(version.name, train, index("val", len(train)), watched=(watch(path), watch(container)))


Read = Callable[[str], bytes]


def _find(path: Path) -> tuple[_Version, Read] | None:
    if path.is_dir():
        for folder in (path, *(path / name for name in _VERSIONS)):
            version = _VERSIONS.get(folder.name)
            if version and (folder / version.val).is_file():
                return version, lambda file, folder=folder: (folder / file).read_bytes()
        return None
    try:
        with tarfile.open(path) as archive:
            outermost = next((parts[0] for member in archive if (parts := PurePosixPath(member.name).parts)), "")
    except (OSError, tarfile.TarError, EOFError):
        return None
    version = _VERSIONS.get(outermost)
    return (version, _archive_reader(path)) if version else None


def _archive_reader(path: Path) -> Read:
    contents: dict[str, bytes] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                contents[PurePosixPath(member.name).name] = file.read()
    return contents.__getitem__


def _content(path: Path, file: str, read: Read) -> bytes:
    try:
        return read(file)
    except (KeyError, OSError) as error:
        raise ValueError(f"{path} lacks {file}; fetch the official archive again") from error


def _batch(path: Path, file: str, version: _Version, read: Read) -> tuple[np.ndarray, np.ndarray]:
    """(pixels [N, 32, 32, 3] uint8, labels [N])."""
    content = _content(path, file, read)
    if file.endswith(".bin"):
        record = 1 + version.coarse_labels + 3 * PLANE
        if not content or len(content) % record:
            raise ValueError(f"{path}: {file} has {len(content):,} bytes, no multiple of {record:,}; fetch it again")
        records = np.frombuffer(content, dtype=np.uint8).reshape(-1, record)
        planes, labels = records[:, -3 * PLANE :], records[:, version.coarse_labels].astype(np.int64)
    else:
        table = _unpickle(path, file, content)
        values = table.get(b"fine_labels" if version.num_classes == 100 else b"labels")
        labels, planes = np.asarray(values if values is not None else []), table.get(b"data", np.empty(0))
        if not isinstance(planes, np.ndarray) or planes.shape != (len(labels), 3 * PLANE) or planes.dtype != np.uint8:
            raise ValueError(f"{path}: {file} holds no uint8 images [N, 3072] with labels; fetch it again")
    if len(labels) and not 0 <= labels.min() <= labels.max() < version.num_classes:
        raise ValueError(f"{path}: {file} has label {labels.max()}; {version.name} ends at {version.num_classes - 1}")
    return np.ascontiguousarray(planes.reshape(-1, 3, SIDE, SIDE).transpose(0, 2, 3, 1)), labels


def _class_names(path: Path, version: _Version, read: Read) -> list[str]:
    content = _content(path, version.meta, read)
    if version.meta.endswith(".txt"):
        names = content.decode().split()
    else:
        table = _unpickle(path, version.meta, content)
        values = table.get(b"fine_label_names" if version.num_classes == 100 else b"label_names", [])
        names = [value.decode() if isinstance(value, bytes) else str(value) for value in values]
    if len(names) != version.num_classes:
        raise ValueError(f"{path}: {version.meta} names {len(names)} classes of {version.num_classes}; fetch it again")
    return names


def _unpickle(path: Path, file: str, content: bytes) -> dict[bytes, Any]:
    try:
        table = _CifarUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(f"{path}: {file} is no CIFAR batch ({error}); fetch the official archive again") from error
    if not isinstance(table, dict):
        raise ValueError(f"{path}: {file} holds a {type(table).__name__}, not a table; fetch the archive again")
    return {key.encode() if isinstance(key, str) else key: value for key, value in table.items()}


class _CifarUnpickler(pickle.Unpickler):
    """Builds plain values and uint8 arrays, nothing else: a pickle can otherwise run any code."""

    def find_class(self, module: str, name: str) -> Any:
        allowed: dict[tuple[str, str], Any] = {
            ("multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): _dtype,
            ("_codecs", "encode"): _encode,
        }
        found = allowed.get((module.rpartition(".")[2], name))
        if found is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR file needs")
        return found


def _dtype(code: str | bytes, *_: object) -> np.dtype:
    if code not in ("u1", b"u1", "|u1", b"|u1"):
        raise pickle.UnpicklingError(f"it holds an array of {code!r}, not of uint8")
    return np.dtype(np.uint8)


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")
