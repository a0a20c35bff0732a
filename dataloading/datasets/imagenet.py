"""ILSVRC2012 as it is handed out: a tar of class tars, a flat validation tar, and its ground truth."""

from __future__ import annotations

import csv
import io
import tarfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path, PurePosixPath

from dataloading import tar
from dataloading.datasets.splits import Splits, is_image_name, watch
from dataloading.index import Index
from dataloading.scan import num_workers

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"


def is_imagenet(path: Path) -> bool:
    return (path / TRAIN).is_file() and not (path / "train").is_dir()


def read_imagenet(path: Path) -> Splits:
    """Lists the images inside both tars in place; classes are the synsets in sorted order, as everywhere.

    Ground truth is the first of: the development kit; LOC_val_solution.csv; a text file with a line
    `ILSVRC2012_val_00000001.JPEG n01751748` or, in the images' order, `n01751748` (or a number 0..999) per image.
    Raises ValueError where a file is missing or they disagree.
    """
    if not (path / VAL).is_file():
        raise ValueError(f"{path} has {TRAIN} but no {VAL}; put it there")
    train_tar, val_tar = str(path / TRAIN), str(path / VAL)
    class_tars = sorted(
        (member for member in tar.members(train_tar) if member.name.endswith(".tar")), key=lambda member: member.name
    )
    synsets = [PurePosixPath(member.name).stem for member in class_tars]

    def images(class_tar: tar.Member) -> list[tar.Member]:
        inside = tar.members(train_tar, class_tar.offset, class_tar.offset + class_tar.size)
        return sorted((member for member in inside if is_image_name(member.name)), key=lambda member: member.name)

    with ThreadPoolExecutor(num_workers()) as pool:
        by_class = list(pool.map(images, class_tars))
    empty = [synset for synset, found in zip(synsets, by_class, strict=True) if not found]
    if empty:
        raise ValueError(f"{train_tar}: class {empty[0]} has no image; copy the file again")
    train = [
        (label, replace(image, name=f"train/{synsets[label]}/{PurePosixPath(image.name).name}"))
        for label, found in enumerate(by_class)
        for image in found
    ]
    val_images = sorted(
        (member for member in tar.members(val_tar) if is_image_name(member.name)), key=lambda member: member.name
    )
    file, truth = _ground_truth(path, synsets, [PurePosixPath(image.name).name for image in val_images])
    labels = {synset: label for label, synset in enumerate(synsets)}
    val = []
    for image in val_images:
        name = PurePosixPath(image.name).name
        synset = truth.get(name, "none")
        if synset not in labels:
            raise ValueError(f"{path / file}: {name} is of class {synset}, which {TRAIN} does not have")
        val.append((labels[synset], replace(image, name=f"val/{synset}/{name}")))
    val.sort(key=lambda pair: (pair[0], pair[1].name))
    return Splits(
        "imagenet",
        _index(synsets, train_tar, train),
        _index(synsets, val_tar, val),
        watched=(watch(train_tar), watch(val_tar), watch(path / file)),
    )


def _index(synsets: list[str], container: str, rows: list[tuple[int, tar.Member]]) -> Index:
    return Index.build(
        synsets,
        [label for label, _ in rows],
        [image.name for _, image in rows],
        offsets=[image.offset for _, image in rows],
        sizes=[image.size for _, image in rows],
        containers=(container,),
        container=[0] * len(rows),
    )


def _ground_truth(path: Path, synsets: list[str], images: list[str]) -> tuple[str, dict[str, str]]:
    """(the file used, synset by validation image name)."""
    if (path / DEVKIT).is_file():
        return DEVKIT, dict(zip(images, _from_devkit(path / DEVKIT, len(images)), strict=True))
    for file in sorted(path.glob("*.csv")) + sorted(path.glob("*.txt")):
        lines = file.read_text().split("\n")
        if file.suffix == ".csv":
            table = csv.DictReader(io.StringIO("\n".join(lines)))
            if table.fieldnames and {"ImageId", "PredictionString"} <= set(table.fieldnames):
                return file.name, {f"{row['ImageId']}.JPEG": row["PredictionString"].split()[0] for row in table}
            continue
        words = [line.split() for line in lines if line.strip()]
        if words and all(len(pair) == 2 for pair in words):
            return file.name, dict(_named(file, words, synsets))
        if len(words) == len(images) and all(len(line) == 1 for line in words):
            return file.name, dict(_named(file, zip(images, (line[0] for line in words), strict=True), synsets))
    raise ValueError(
        f"{path} has no ground truth for its {len(images):,} validation images; put {DEVKIT}, LOC_val_solution.csv or "
        "a text file of `image synset` lines there"
    )


def _named(file: Path, pairs: Iterable[Iterable[str]], synsets: list[str]) -> Iterable[tuple[str, str]]:
    for name, label in pairs:
        if label.isdigit():
            if "ground_truth" in file.name:
                raise ValueError(f"{file}: its numbers need the development kit's table; put {DEVKIT} there")
            if int(label) >= len(synsets):
                raise ValueError(f"{file}: label {label} for {name}; numbers go from 0 to {len(synsets) - 1}")
            yield PurePosixPath(name).name, synsets[int(label)]
        else:
            yield PurePosixPath(name).name, label


def _from_devkit(devkit: Path, num_images: int) -> list[str]:
    """Synsets of the validation images in their order: the kit's numbers, put into words by its meta.mat."""
    # SciPy comes with scikit-image; only this one table of the kit needs it.
    from scipy.io import loadmat

    contents: dict[str, bytes] = {}
    with tarfile.open(devkit) as archive:
        for member in archive:
            file = archive.extractfile(member)
            if file is not None:
                contents[PurePosixPath(member.name).name] = file.read()
    meta, truth = contents.get("meta.mat"), contents.get("ILSVRC2012_validation_ground_truth.txt")
    if meta is None or truth is None:
        raise ValueError(f"{devkit} lacks meta.mat or the validation ground truth; fetch it again")
    table = loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"]
    by_number = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in table}
    numbers = [int(line) for line in truth.split()]
    if len(numbers) != num_images:
        raise ValueError(f"{devkit} labels {len(numbers):,} images, {VAL} has {num_images:,}; one of them is not whole")
    return [by_number.get(number, f"number {number}") for number in numbers]
