"""The same images give the same set however they are stored; a second start reads nothing."""

from __future__ import annotations

import hashlib
import os
import shutil
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from dataloading.config import DataConfig
from dataloading.datasets import splits as splits_module
from dataloading.datasets.demo import demo_archive
from dataloading.datasets.open import ImageSet, open_dataset
from dataloading.datasets.splits import is_image_name
from dataloading.index import PIXELS, Index
from dataloading.scan import Progress, Source


def read(path: Path, seed: int = 0, **settings: object) -> ImageSet:
    return open_dataset(DataConfig(path=str(path), **{"heldout": 0, **settings}), seed)  # type: ignore[arg-type]


def bytes_of(index: Index) -> list[bytes]:
    with Source(index) as source:
        return [source.read(row) for row in range(len(index))]


def tree(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        digest.update(f"{file} {file.stat().st_mtime_ns}".encode() + (file.read_bytes() if file.is_file() else b""))
    return digest.hexdigest()


def zipped(folder: Path, path: Path, kind: int) -> Path:
    with zipfile.ZipFile(path, "w", kind) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
    return path


def tarred(folder: Path, path: Path, mode: str) -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        archive.add(folder, folder.name)
    return path


def test_order_and_labels_are_torchvisions(folder: Path) -> None:
    found = read(folder)
    for index, split in ((found.train, "train"), (found.val, "val")):
        expected = ImageFolder(str(folder / split), is_valid_file=is_image_name)
        assert [(index.name(row), int(index.labels[row])) for row in range(len(index))] == expected.samples
        assert list(index.classes) == expected.classes
        for row in range(len(index)):
            image, _ = expected[row]
            assert (index.widths[row], index.heights[row]) == image.size
    assert (len(found.train), len(found.val), found.quarantined) == (12, 6, ())


def test_every_way_of_storing_gives_the_same_set(folder: Path, tmp_path: Path, cache: Path) -> None:
    ways = {
        "folder": folder,
        "tar": tarred(folder, tmp_path / "a.tar", "w"),
        "tar.gz": tarred(folder, tmp_path / "a.tgz", "w:gz"),
        "tar.xz": tarred(folder, tmp_path / "a.tar.xz", "w:xz"),
        "zip stored": zipped(folder, tmp_path / "a.zip", zipfile.ZIP_STORED),
        "zip deflated": zipped(folder, tmp_path / "b.zip", zipfile.ZIP_DEFLATED),
    }
    sets = {way: read(path, heldout=2) for way, path in ways.items()}
    assert len({found.fingerprint for found in sets.values()}) == 1
    contents = {
        way: (bytes_of(found.train), bytes_of(found.heldout), bytes_of(found.val)) for way, found in sets.items()
    }
    assert all(content == contents["folder"] for content in contents.values())
    assert sets["tar"].train.containers == (str(tmp_path / "a.tar"),)  # in place
    assert sets["zip stored"].train.containers == (str(tmp_path / "a.zip"),)
    assert Path(sets["zip deflated"].train.containers[0]).is_relative_to(cache)


def test_a_wrapping_folder_and_other_names_of_the_validation_split(folder: Path, tmp_path: Path) -> None:
    expected = read(folder).fingerprint
    shutil.copytree(folder, tmp_path / "outer" / "wrapped")
    assert read(tmp_path / "outer").fingerprint == expected
    (folder / "val").rename(folder / "test")
    assert len(read(folder).val) == 6


def test_second_start_reads_no_image_and_a_changed_folder_is_read_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = read(folder)
    scan = splits_module.scan_headers
    monkeypatch.setattr(splits_module, "scan_headers", None)
    assert read(folder).fingerprint == first.fingerprint
    monkeypatch.setattr(splits_module, "scan_headers", scan)
    shutil.copy(folder / "train/ant/0.jpg", folder / "train/cow/deeper/new.jpg")
    assert len(read(folder).train) == 13


def test_a_deleted_part_of_the_cache_is_made_again(folder: Path, tmp_path: Path, cache: Path) -> None:
    packed = tarred(folder, tmp_path / "a.tgz", "w:gz")
    first = bytes_of(read(packed).train)
    shutil.rmtree(cache / "unpacked")
    assert bytes_of(read(packed).train) == first


def test_one_of_many_that_start_at_once_reads(folder: Path) -> None:
    reports: list[Progress] = []
    found: list[ImageSet] = []
    config = DataConfig(path=str(folder), heldout=0.25)
    starters = [
        threading.Thread(target=lambda: found.append(open_dataset(config, 0, progress=reports.append)))
        for _ in range(6)
    ]
    for starter in starters:
        starter.start()
    for starter in starters:
        starter.join()
    assert [report.what for report in reports] == ["reading headers: train", "reading headers: val"]
    assert len({one.fingerprint for one in found}) == 1
    assert len(found) == 6


def test_the_source_is_never_written_to(folder: Path) -> None:
    before = tree(folder)
    read(folder)
    assert tree(folder) == before


def test_unreadable_images_are_left_out_and_named(folder: Path) -> None:
    (folder / "train/bee/1.JPEG").write_bytes(b"")
    (folder / "val/cow/deeper/0.jpg").write_bytes(b"<html>not found</html>")
    found = read(folder)
    assert (len(found.train), len(found.val)) == (11, 5)
    assert [(image.name, image.split, image.label, image.reason) for image in found.quarantined] == [
        ("train/bee/1.JPEG", "train", "bee", "zero_bytes"),
        ("val/cow/deeper/0.jpg", "val", "cow", "not_an_image"),
    ]


def test_heldout_comes_from_training_and_before_the_long_tail(folder: Path) -> None:
    whole = read(folder)
    plain, tailed = read(folder, heldout=3), read(folder, heldout=3, imbalance_factor=4.0)
    names = [{index.name(row) for row in range(len(index))} for index in (whole.train, plain.train, plain.heldout)]
    assert names[1] | names[2] == names[0]
    assert not names[1] & names[2]
    assert plain.val.fingerprint == whole.val.fingerprint == tailed.val.fingerprint
    assert tailed.heldout.fingerprint == plain.heldout.fingerprint
    assert len(tailed.train) < len(plain.train)
    assert read(folder, seed=1, heldout=3).fingerprint != plain.fingerprint


def test_synthetic_and_demo_sets() -> None:
    config = DataConfig(source="synthetic", image_size=16, resize_size=16, synthetic_images=100, synthetic_classes=7)
    synthetic = open_dataset(config, 0)
    assert len(synthetic.train) + len(synthetic.heldout) == 100
    assert set(synthetic.val.labels) == set(range(7))
    assert np.all(synthetic.train.flags == PIXELS)
    assert np.all(synthetic.train.sizes == 3 * 16 * 16)

    demo = open_dataset(DataConfig(source="demo", heldout=0), 0)
    assert (len(demo.train), len(demo.val), len(demo.classes)) == (14 * 250, 14 * 60, 14)
    assert np.all(demo.train.heights == 64)
    made = demo_archive().read_bytes()
    shutil.rmtree(demo_archive().parent)
    assert demo_archive().read_bytes() == made


def _empty_class(root: Path) -> None:
    (root / "train" / "dog").mkdir()


def _other_classes(root: Path) -> None:
    (root / "val" / "ant").rename(root / "val" / "emu")


def _one_class(root: Path) -> None:
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            shutil.rmtree(root / split / name)


def _all_broken(root: Path) -> None:
    for file in (root / "val").rglob("*.*"):
        file.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_empty_class, "train class 'dog' has no image"),
        (_other_classes, "only in train: 'ant'; only in val: 'emu'"),
        (_one_class, "has 1 class; training needs at least 2"),
        (lambda root: shutil.rmtree(root / "val"), "has train/ but no validation split; add one of val/, valid/"),
        (lambda root: shutil.rmtree(root / "train"), "is no data set: no train/ in it"),
        (_all_broken, r"has no usable validation image; 6 were left out, first val/ant/0.jpg .zero_bytes."),
        (shutil.rmtree, "does not exist"),
    ],
)
def test_bad_folders_are_refused_in_one_line(folder: Path, damage, message: str) -> None:  # type: ignore[no-untyped-def]
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        read(folder)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_bad_archives_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "text.tar").write_text("hello")
    shutil.rmtree(folder / "val")
    broken = tarred(folder, tmp_path / "broken.tgz", "w:gz")
    broken.write_bytes(broken.read_bytes()[:-100])
    for path, message in (
        (tmp_path / "text.tar", "neither a tar"),
        (tarred(folder, tmp_path / "a.tar", "w"), "no data set: it needs train/<class>/. and one of"),
        (broken, "cannot be unpacked"),
    ):
        with pytest.raises(ValueError, match=message):
            read(path)
    assert not list((tmp_path / "cache").rglob("images.tar"))
    with pytest.raises(ValueError, match=r"data.path is empty"):
        open_dataset(DataConfig(), 0)


def test_an_unwritable_cache_says_what_to_do(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"cannot be written .*XDG_CACHE_HOME"):
        read(folder)
