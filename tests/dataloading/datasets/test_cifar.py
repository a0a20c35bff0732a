"""CIFAR's archives: both versions give the same pixels and labels, and a pickle cannot run code."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from dataloading.config import DataConfig
from dataloading.datasets.open import ImageSet, open_dataset
from dataloading.index import PIXELS
from dataloading.scan import Source

PER_BATCH = 12
RNG = np.random.default_rng(5)
PLANES = RNG.integers(0, 256, (6 * PER_BATCH, 3072), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 6 * PER_BATCH)


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes bytes as Python 2 wrote its strings, and numpy's module by its old name: as the official files are."""

    dispatch: ClassVar[dict[type, object]] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_bytes(self, value: bytes) -> None:
        self.write(pickle.BINSTRING + len(value).to_bytes(4, "little") + value)
        self.memoize(value)

    dispatch[bytes] = save_bytes

    def save_global(self, value: object, name: str | None = None) -> None:
        module = {"_reconstruct": "numpy.core.multiarray"}.get(value.__name__, value.__module__)  # type: ignore[attr-defined]
        self.write(pickle.GLOBAL + f"{module}\n{value.__name__}\n".encode())  # type: ignore[attr-defined]
        self.memoize(value)

    dispatch[type(np.empty(0).__reduce__()[0])] = save_global
    dispatch[type] = save_global


def pickled(table: dict[bytes, object]) -> bytes:
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(table)
    return stream.getvalue()


def files(version: str) -> dict[str, bytes]:
    batches = [
        (PLANES[first : first + PER_BATCH], LABELS[first : first + PER_BATCH]) for first in range(0, 72, PER_BATCH)
    ]
    names = [b"class%d" % number for number in range(100 if "100" in version else 10)]
    if version == "cifar-10-batches-py":
        content = {
            f"data_batch_{number + 1}" if number < 5 else "test_batch": pickled(
                {b"batch_label": b"batch", b"labels": labels.tolist(), b"data": planes, b"filenames": [b"x.png"] * 12}
            )
            for number, (planes, labels) in enumerate(batches)
        }
        return {**content, "batches.meta": pickled({b"label_names": names, b"num_vis": 3072}), "readme.html": b"<html>"}
    if version == "cifar-10-batches-bin":
        content = {
            f"data_batch_{number + 1}.bin" if number < 5 else "test_batch.bin": np.concatenate(
                [labels[:, None].astype(np.uint8), planes], axis=1
            ).tobytes()
            for number, (planes, labels) in enumerate(batches)
        }
        return {**content, "batches.meta.txt": b"\n".join(names) + b"\n\n"}
    parts = {"train": slice(0, 60), "test": slice(60, 72)}
    if version == "cifar-100-python":
        content = {
            name: pickled(
                {b"fine_labels": (9 * LABELS[part]).tolist(), b"coarse_labels": [0] * 3, b"data": PLANES[part]}
            )
            for name, part in parts.items()
        }
        return {**content, "meta": pickled({b"fine_label_names": names, b"coarse_label_names": [b"x"]})}
    content = {
        f"{name}.bin": np.concatenate(
            [np.full((len(LABELS[part]), 1), 3), 9 * LABELS[part][:, None], PLANES[part]], axis=1
        ).astype(np.uint8).tobytes()
        for name, part in parts.items()
    }  # fmt: skip
    return {**content, "fine_label_names.txt": b"\n".join(names)}


def archive(path: Path, version: str, **changes: bytes) -> Path:
    with tarfile.open(path, "w:gz") as output:
        for name, content in {**files(version), **changes}.items():
            info = tarfile.TarInfo(f"{version}/{name}")
            info.size = len(content)
            output.addfile(info, io.BytesIO(content))
    return path


def read(path: Path) -> ImageSet:
    return open_dataset(DataConfig(path=str(path), heldout=0), 0)


@pytest.mark.parametrize(
    ("versions", "labels", "num_classes"),
    [
        (("cifar-10-batches-py", "cifar-10-batches-bin"), LABELS, 10),
        (("cifar-100-python", "cifar-100-binary"), 9 * LABELS, 100),
    ],
)
def test_both_versions_packed_and_unpacked(
    tmp_path: Path, versions: tuple[str, str], labels: np.ndarray, num_classes: int
) -> None:
    sets = [read(archive(tmp_path / f"{version}.tar.gz", version)) for version in versions]
    with tarfile.open(tmp_path / f"{versions[0]}.tar.gz") as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    sets += [read(tmp_path / "unpacked"), read(tmp_path / "unpacked" / versions[0])]
    assert len({found.fingerprint for found in sets}) == 1
    for found in sets:
        assert found.classes == tuple(f"class{number}" for number in range(num_classes))
        np.testing.assert_array_equal(np.concatenate([found.train.labels, found.val.labels]), labels)
        assert np.all(found.val.flags == PIXELS)
        with Source(found.val) as source:
            pixels = np.frombuffer(source.read(11), np.uint8).reshape(32, 32, 3)
        np.testing.assert_array_equal(pixels, PLANES[71].reshape(3, 32, 32).transpose(1, 2, 0))


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("pwned",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({b"labels": Evil()}, protocol=2), "asks for posix.mkdir"),
        (pickle.dumps({b"labels": [], b"data": np.array([object()])}, protocol=2), "not of uint8|asks for"),
        (pickled({b"labels": [1, 2], b"data": PLANES[:1]}), "no uint8 images"),
        (pickled({b"labels": [10] * 12, b"data": PLANES[:12]}), "has label 10"),
        (b"\x80\x02", "no CIFAR batch"),
    ],
)
def test_bad_batches_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = archive(tmp_path / "a.tar.gz", "cifar-10-batches-py", data_batch_3=content)
    with pytest.raises(ValueError, match=f"data_batch_3.*({message})"):
        read(path)
    assert not Path("pwned").exists()


def test_short_or_missing_files_are_refused(tmp_path: Path) -> None:
    short = archive(tmp_path / "a.tar.gz", "cifar-10-batches-bin", **{"data_batch_2.bin": b"x" * 3072})
    with pytest.raises(ValueError, match=r"data_batch_2.bin has 3,072 bytes"):
        read(short)
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    (folder / "test.bin").write_bytes(files("cifar-100-binary")["test.bin"])
    with pytest.raises(ValueError, match=r"lacks train.bin"):
        read(folder)
