"""ILSVRC2012's own files, with every form of ground truth, are the same set as the folder that people unpack."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from dataloading.config import DataConfig
from dataloading.datasets.imagenet import DEVKIT, TRAIN, VAL
from dataloading.datasets.open import ImageSet, open_dataset

SYNSETS = ("n01", "n02", "n03")
KIT_NUMBER = {"n01": 3, "n02": 1, "n03": 2, "n99": 4}  # the kit numbers synsets in an order of its own


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


@pytest.fixture
def official(folder: Path, tmp_path: Path) -> tuple[Path, list[str], str]:
    """(folder with both tars, synset of each validation image, fingerprint of the same images in a folder)."""
    root, unpacked = tmp_path / "official", tmp_path / "unpacked"
    root.mkdir()
    val: dict[str, tuple[str, bytes]] = {}
    with tarfile.open(root / TRAIN, "w") as outer:
        for name, synset in zip(("cow", "ant", "bee"), reversed(SYNSETS), strict=True):
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as class_tar:
                for number, file in enumerate(sorted((folder / "train" / name).rglob("[!.]*.[jJ]*"))):
                    add(class_tar, f"{synset}_{number}.JPEG", file.read_bytes())
                    target = unpacked / "train" / synset / f"{synset}_{number}.JPEG"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(file.read_bytes())
            add(outer, f"{synset}.tar", inner.getvalue())
            for file in (folder / "val" / name).rglob("[!.]*.[jJ]*"):
                image = f"ILSVRC2012_val_{(7 * len(val)) % 11:08d}.JPEG"
                val[image] = (synset, file.read_bytes())
                target = unpacked / "val" / synset / image
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(file.read_bytes())
    with tarfile.open(root / VAL, "w") as archive:
        for image in sorted(val, reverse=True):
            add(archive, image, val[image][1])
    expected = open_dataset(DataConfig(path=str(unpacked), heldout=0), 0)
    return root, [f"{image} {val[image][0]}" for image in sorted(val)], expected.fingerprint


def read(root: Path) -> ImageSet:
    return open_dataset(DataConfig(path=str(root), heldout=0), 0)


def devkit(root: Path, synsets: list[str]) -> None:
    rows = [(KIT_NUMBER[name], name, "words", 0) for name in KIT_NUMBER]
    kinds = [("ILSVRC2012_ID", "f8"), ("WNID", "O"), ("words", "O"), ("num_children", "f8")]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, dtype=kinds).reshape(-1, 1)}, do_compression=True)
    with tarfile.open(root / DEVKIT, "w:gz") as archive:
        add(archive, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        truth = "".join(f"{KIT_NUMBER[name]}\n" for name in synsets)
        add(archive, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth.encode())


@pytest.mark.parametrize("truth", ["devkit", "csv", "named", "numbered", "in order"])
def test_every_ground_truth_gives_the_unpacked_set(official: tuple[Path, list[str], str], truth: str) -> None:
    root, lines, fingerprint = official
    synsets = [line.split()[1] for line in lines]
    if truth == "devkit":
        devkit(root, synsets)
    elif truth == "csv":
        rows = [
            f"{line.split('.')[0]},{line.split()[1]} 1 2 3 4 {line.split()[1]} 5 6 7 8\n" for line in reversed(lines)
        ]
        (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(rows))
    else:
        text = {
            "named": reversed(lines),
            "numbered": [f"{line.split()[0]} {SYNSETS.index(line.split()[1])}" for line in lines],
            "in order": synsets,
        }[truth]
        (root / "val.txt").write_text("\n".join(text) + "\n")
    found = read(root)
    assert found.fingerprint == fingerprint
    assert found.classes == SYNSETS
    assert found.train.containers == (str(root / TRAIN),)


def test_missing_or_disagreeing_files_are_refused(official: tuple[Path, list[str], str]) -> None:
    root, lines, _ = official
    with pytest.raises(ValueError, match="has no ground truth for its 6 validation images; put"):
        read(root)
    (root / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n" * 6)
    with pytest.raises(ValueError, match="need the development kit's table"):
        read(root)
    (root / "ILSVRC2012_validation_ground_truth.txt").unlink()
    (root / "val.txt").write_text("\n".join([*lines[:-1], lines[-1][:-3] + "n77"]))
    with pytest.raises(ValueError, match=r"is of class n77, which ILSVRC2012_img_train.tar does not have"):
        read(root)
    devkit(root, ["n01"] * 5)
    with pytest.raises(ValueError, match="labels 5 images"):
        read(root)
    (root / VAL).unlink()
    with pytest.raises(ValueError, match=r"but no ILSVRC2012_img_val.tar"):
        read(root)
