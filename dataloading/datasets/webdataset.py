"""WebDataset shards: tar files with key.jpg beside key.cls, read in place."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dataloading import tar
from dataloading.datasets.splits import IMAGE_SUFFIXES, VALIDATION_NAMES, Splits, watch
from dataloading.index import Index
from dataloading.quarantine import Quarantined
from dataloading.scan import num_workers


def is_webdataset(path: Path) -> bool:
    return path.is_dir() and "train" in _shards(path)


def read_webdataset(path: Path) -> Splits:
    """Lists the samples of `train-*.tar` and `val-*.tar` (or of tars in train/ and val/), in the shards' order.

    The label is the number in key.cls; class names are the lines of classes.txt where there is one, else the numbers.
    An image without a label is quarantined. Raises ValueError without validation shards or for a label out of range.
    """
    shards = _shards(path)
    val = next((name for name in VALIDATION_NAMES if name in shards), None)
    if val is None:
        names = " or ".join(f"{name}-*.tar" for name in VALIDATION_NAMES)
        raise ValueError(f"{path} has training shards but no validation split; add {names}")
    names_file = path / "classes.txt"
    classes = names_file.read_text().split("\n") if names_file.is_file() else []
    classes = [name for name in classes if name]
    samples = {}
    with ThreadPoolExecutor(num_workers()) as pool:
        for split, files in (("train", shards["train"]), ("val", shards[val])):
            samples[split] = list(pool.map(_samples, files))
    highest = max((label for shard in samples["train"] for _, label in shard), default=-1)
    classes = classes or [str(label) for label in range(highest + 1)]
    quarantined = []
    indexes = {}
    for split, files in (("train", shards["train"]), ("val", shards[val])):
        rows = []
        for number, shard in enumerate(samples[split]):
            for member, label in shard:
                if label >= len(classes):
                    raise ValueError(f"{files[number]}: {member.name} has label {label} of {len(classes)} classes")
                if label < 0:
                    quarantined.append(Quarantined(member.name, split, "", "unreadable", "no .cls with its number"))
                else:
                    rows.append((number, label, member))
        indexes[split] = Index.build(
            classes,
            [label for _, label, _ in rows],
            [member.name for _, _, member in rows],
            offsets=[member.offset for _, _, member in rows],
            sizes=[member.size for _, _, member in rows],
            containers=[str(file) for file in files],
            container=[number for number, _, _ in rows],
        )
    folders = {path, shards["train"][0].parent, shards[val][0].parent}
    watched = [watch(file) for file in (*shards["train"], *shards[val], *sorted(folders), *path.glob("classes.txt"))]
    return Splits(path.name, indexes["train"], indexes["val"], tuple(quarantined), tuple(watched))


def _shards(path: Path) -> dict[str, list[Path]]:
    """Tar files by the split that their folder or a word of their name says."""
    found: dict[str, list[Path]] = {}
    for file in sorted((*path.glob("*.tar"), *path.glob("*/*.tar"))):
        words = [file.parent.name] if file.parent != path else re.split(r"[^a-z]+", file.stem.lower())
        split = next((word for word in words if word == "train" or word in VALIDATION_NAMES), None)
        if split and not file.name.startswith("."):
            found.setdefault(split, []).append(file)
    return found


def _samples(shard: Path) -> list[tuple[tar.Member, int]]:
    """(image, label) of every sample; the label is -1 where there is none."""
    images: dict[str, tar.Member] = {}
    labels: dict[str, int] = {}
    with open(shard, "rb", buffering=0) as file:
        for member in tar.members(str(shard)):
            folder, _, name = member.name.rpartition("/")
            key, _, suffix = name.partition(".")
            key, suffix = f"{folder}/{key}", f".{suffix.lower()}"
            if suffix == ".cls":
                text = os.pread(file.fileno(), member.size, member.offset).strip()
                labels[key] = int(text) if text.isdigit() else -1
            elif suffix in IMAGE_SUFFIXES:
                images.setdefault(key, member)
    return [(member, labels.get(key, -1)) for key, member in images.items()]
