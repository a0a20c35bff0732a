"""A folder of images: <root>/train/<class>/* and <root>/val/<class>/*."""

from __future__ import annotations

import os
from pathlib import Path

from dataloading.datasets.splits import VALIDATION_NAMES, Splits, check_classes, is_image_name, watch
from dataloading.index import Index


def read_image_folder(path: Path) -> Splits:
    """Lists the images of both splits, classes and files sorted by name, as torchvision's ImageFolder does.

    One wrapping folder is allowed. Files without an image's suffix and names that begin with a dot are passed over.
    Raises ValueError where train, a validation split or a class's images are missing.
    """
    root, val = _find_root(path)
    watched: list[tuple[str, int, int]] = [watch(path)] + ([watch(root)] if root != path else [])
    files = {split: _classes(root / name, watched) for split, name in (("train", "train"), ("val", val))}
    counts = {split: {name: len(found) for name, found in by_class.items()} for split, by_class in files.items()}
    classes = check_classes(str(path), counts["train"], counts["val"])

    def index(split: str, folder: str) -> Index:
        names: list[str] = []
        labels: list[int] = []
        for label, name in enumerate(classes):
            found = sorted(files[split][name])
            names.extend(f"{folder}/{name}/{file}" for file in found)
            labels.extend([label] * len(found))
        return Index.build(classes, labels, names, root=str(root))

    return Splits(path.name, index("train", "train"), index("val", val), watched=tuple(watched))


def _find_root(path: Path) -> tuple[Path, str]:
    """The folder that holds `train`, and the name of its validation folder."""
    inside = [entry for entry in sorted(path.iterdir()) if entry.is_dir() and not entry.name.startswith(".")]
    candidates = [path, *(inside if len(inside) == 1 else [])]
    for root in candidates:
        if (root / "train").is_dir():
            for name in VALIDATION_NAMES:
                if (root / name).is_dir():
                    return root, name
            raise ValueError(
                f"{root} has train/ but no validation split; add one of {', '.join(f'{v}/' for v in VALIDATION_NAMES)}"
            )
    found = ", ".join(entry.name for entry in inside[:5]) or "no folder"
    raise ValueError(
        f"{path} is no data set: no train/ in it (found {found}); give a folder with train/<class>/* and "
        "val/<class>/*, an archive of one, CIFAR's or ImageNet's own files, or WebDataset shards"
    )


def _classes(folder: Path, watched: list[tuple[str, int, int]]) -> dict[str, list[str]]:
    """Image names by class, relative to the class folder."""
    watched.append(watch(folder))
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return {name: _images(os.path.join(folder, name), "", watched, set()) for name in names}


def _images(folder: str, prefix: str, watched: list[tuple[str, int, int]], above: set[tuple[int, int]]) -> list[str]:
    """Image names below `folder`; `above` guards against links that lead back up."""
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in above:
        return []
    watched.append(watch(folder))
    found: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                if not entry.name.startswith("."):
                    found += _images(entry.path, f"{prefix}{entry.name}/", watched, above | {identity})
            elif is_image_name(entry.name):
                found.append(prefix + entry.name)
    return found
