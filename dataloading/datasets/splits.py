"""What a source on disk holds: a training and a validation split, before anything is held out or cut."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path

from dataloading.cache import publish_file
from dataloading.index import Index
from dataloading.quarantine import Quarantined, from_lines, to_lines
from dataloading.scan import ProgressCallback, scan_headers

# torchvision's list; a class folder's other files (thumbnails' databases, notes) are passed over.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
VALIDATION_NAMES = ("val", "valid", "validation", "test")  # the first that is there is taken


@dataclass(frozen=True)
class Splits:
    """watched: files and folders that the splits were read from, each (path, mtime_ns, size) as it was then."""

    name: str
    train: Index
    val: Index
    quarantined: tuple[Quarantined, ...] = ()
    watched: tuple[tuple[str, int, int], ...] = ()

    def scanned(self, *, num_threads: int = 0, progress: ProgressCallback | None = None) -> Splits:
        """The same with every image's header read; unusable images moved to `quarantined`."""
        train, bad_train = scan_headers(self.train, "train", num_threads=num_threads, progress=progress)
        val, bad_val = scan_headers(self.val, "val", num_threads=num_threads, progress=progress)
        return replace(self, train=train, val=val, quarantined=(*self.quarantined, *bad_train, *bad_val))

    def check(self, where: str) -> Splits:
        """Raises ValueError unless both splits have images and there are two classes or more."""
        if self.train.num_classes < 2:
            raise ValueError(f"{where} has {self.train.num_classes} class; training needs at least 2")
        for split, index in (("training", self.train), ("validation", self.val)):
            if not len(index):
                bad = [image for image in self.quarantined if image.split == split[: len(image.split)]]
                why = f"; {len(bad)} were left out, first {bad[0].name} ({bad[0].reason})" if bad else ""
                raise ValueError(f"{where} has no usable {split} image{why}: replace them")
        return self

    def save(self, folder: Path, final_folder: Path, movable: Path | None = None) -> None:
        """Write into the existing `folder`, which the caller will rename to `final_folder`."""
        for split, index in (("train", self.train), ("val", self.val)):
            (folder / split).mkdir()
            index.write_columns(folder / split, final_folder / split, movable)
        (folder / "quarantine.jsonl").write_bytes(to_lines(self.quarantined))
        publish_file(folder / "splits.json", json.dumps({"name": self.name, "watched": self.watched}).encode())

    @classmethod
    def open(cls, folder: Path) -> Splits:
        """What `save` wrote. Raises ValueError where that is not complete."""
        try:
            manifest = json.loads((folder / "splits.json").read_bytes())
            quarantined = from_lines((folder / "quarantine.jsonl").read_bytes())
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} is no complete set ({error}); delete it, prepare the set again") from error
        return cls(
            manifest["name"],
            Index.open(folder / "train"),
            Index.open(folder / "val"),
            tuple(quarantined),
            tuple((path, mtime, size) for path, mtime, size in manifest["watched"]),
        )

    def unchanged(self) -> bool:
        """Whether everything it was read from is as it was then."""
        try:
            return all(watch(path) == (path, mtime, size) for path, mtime, size in self.watched)
        except OSError:
            return False


def watch(path: str | os.PathLike[str]) -> tuple[str, int, int]:
    status = os.stat(path)
    return os.fspath(path), status.st_mtime_ns, status.st_size


def is_image_name(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES) and not os.path.basename(name).startswith(".")


def check_classes(where: str, train_counts: dict[str, int], val_counts: dict[str, int]) -> tuple[str, ...]:
    """The classes in sorted order. Raises ValueError for an empty class and for classes that differ."""
    for split, counts in (("train", train_counts), ("val", val_counts)):
        empty = [name for name, count in counts.items() if not count]
        if empty:
            raise ValueError(
                f"{where}: {split} class {_some(empty)} has no image (of {', '.join(IMAGE_SUFFIXES)}); "
                "add images or remove the folder"
            )
    only_train, only_val = sorted(train_counts.keys() - val_counts), sorted(val_counts.keys() - train_counts)
    if only_train or only_val:
        raise ValueError(
            f"{where}: training and validation classes differ (only in train: {_some(only_train)}; only in val: "
            f"{_some(only_val)}); both need the same class folders"
        )
    return tuple(sorted(train_counts))


def _some(names: list[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:5]) or "none"
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")
