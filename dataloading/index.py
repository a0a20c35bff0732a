"""The table of a split's images: where each lies, how large it is, what it shows."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from dataloading.cache import publish

# Flags, one bit each. PIXELS says how to read the bytes; the others mark what is unusual but usable.
PIXELS = 1  # the bytes are uint8 [height, width, 3], not an encoded image
NOT_JPEG = 2  # PNG, WebP, BMP, TIFF or PNM, whatever the file's name says
CMYK = 4
GRAY = 8
PROGRESSIVE = 16  # many-scan JPEG: decoders keep all coefficients in memory
EXIF_ROTATED = 32  # the Exif tag asks for a turn; nobody here turns it, heights and widths are the stored pixels
SIXTEEN_BIT = 64
HUGE = 128  # a side above 8,192 pixels
FLAG_NAMES = {
    PIXELS: "pixels",
    NOT_JPEG: "not_jpeg",
    CMYK: "cmyk",
    GRAY: "gray",
    PROGRESSIVE: "progressive",
    EXIF_ROTATED: "exif_rotated",
    SIXTEEN_BIT: "sixteen_bit",
    HUGE: "huge",
}

_FORMAT = 1
_COLUMNS = {
    "labels": np.int32,
    "heights": np.int32,
    "widths": np.int32,
    "container": np.int32,
    "offsets": np.int64,
    "sizes": np.int64,
    "names": np.uint8,
    "name_ends": np.int64,
    "flags": np.uint8,
}
_HASHED = ("labels", "heights", "widths", "sizes", "flags", "name_ends", "names")


@dataclass(frozen=True, eq=False)
class Index:
    """Columns of one split, one row an image; read-only, memory-mapped where they come from disk.

    labels, heights, widths  [N] int32; heights and widths are the stored pixels, EXIF rotation ignored
    containers   paths of the files that hold images back to back (tar shards, pixel arrays)
    container    [N] int32, which of `containers` holds the row; -1: the row is a file of its own, named by `name`
    offsets, sizes  [N] int64, bytes inside the container (a file of its own: 0 and the file's size)
    names, name_ends  names of all rows as one utf-8 blob, and [N] int64 where each ends
    flags        [N] uint8
    root         folder that the names of files of their own are relative to; "": they are full paths
    """

    classes: tuple[str, ...]
    labels: np.ndarray
    heights: np.ndarray
    widths: np.ndarray
    containers: tuple[str, ...]
    container: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    names: np.ndarray
    name_ends: np.ndarray
    flags: np.ndarray
    root: str = ""

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def name(self, row: int) -> str:
        """The image's file or member name (a full path for a file of its own)."""
        name = self.stored_name(row)
        return os.path.join(self.root, name) if self.root and self.container[row] < 0 else name

    def stored_name(self, row: int) -> str:
        """The name as the index keeps it: relative to `root`, the same wherever the set lies."""
        start = int(self.name_ends[row - 1]) if row else 0
        return bytes(self.names[start : int(self.name_ends[row])]).decode("utf-8", "surrogateescape")

    @cached_property
    def fingerprint(self) -> str:
        """Sha-256 over classes, labels, sizes, names and order; not over where the set lies. Stored by `save`."""
        digest = hashlib.sha256(json.dumps([_FORMAT, self.classes]).encode())
        for column in _HASHED:
            digest.update(np.ascontiguousarray(getattr(self, column)).data)
        return digest.hexdigest()

    @classmethod
    def build(
        cls,
        classes: Sequence[str],
        labels: Sequence[int] | np.ndarray,
        names: Iterable[str],
        *,
        sizes: Sequence[int] | np.ndarray | None = None,
        offsets: Sequence[int] | np.ndarray | None = None,
        containers: Sequence[str] = (),
        container: Sequence[int] | np.ndarray | None = None,
        heights: Sequence[int] | np.ndarray | None = None,
        widths: Sequence[int] | np.ndarray | None = None,
        flags: Sequence[int] | np.ndarray | None = None,
        root: str = "",
    ) -> Index:
        """An index in memory. Heights and widths left out are 0: the images' headers have not been read yet."""
        encoded = [name.encode("utf-8", "surrogateescape") for name in names]
        num_rows = len(encoded)

        def column(values: Sequence[int] | np.ndarray | None, name: str, default: int = 0) -> np.ndarray:
            array = np.full(num_rows, default) if values is None else np.asarray(values)
            if array.shape != (num_rows,):
                raise ValueError(f"index column {name} has shape {array.shape}; {num_rows} names need [{num_rows}]")
            return _frozen(array.astype(_COLUMNS[name]))

        return cls(
            classes=tuple(classes),
            labels=column(labels, "labels"),
            heights=column(heights, "heights"),
            widths=column(widths, "widths"),
            containers=tuple(containers),
            container=column(container, "container", default=-1),
            offsets=column(offsets, "offsets"),
            sizes=column(sizes, "sizes"),
            names=_frozen(np.frombuffer(b"".join(encoded), dtype=np.uint8)),
            name_ends=_frozen(np.cumsum([len(name) for name in encoded], dtype=np.int64)),
            flags=column(flags, "flags"),
            root=root,
        )

    def subset(self, rows: np.ndarray) -> Index:
        """The given rows, in the given order, as an index in memory."""
        rows = np.asarray(rows, dtype=np.int64)
        starts = np.concatenate(([0], self.name_ends[:-1]))[rows] if len(self) else rows
        lengths = self.name_ends[rows] - starts
        ends = np.cumsum(lengths, dtype=np.int64)
        names = np.empty(int(ends[-1]) if len(ends) else 0, dtype=np.uint8)
        for first in range(0, len(rows), 1 << 16):  # in parts: positions take 8 bytes a character
            part = slice(first, first + (1 << 16))
            begin = int(ends[first] - lengths[first])
            shift = starts[part] - (ends[part] - lengths[part])
            positions = np.arange(begin, int(ends[part][-1])) + np.repeat(shift, lengths[part])
            names[begin : begin + len(positions)] = self.names[positions]
        return Index(
            classes=self.classes,
            labels=_frozen(self.labels[rows]),
            heights=_frozen(self.heights[rows]),
            widths=_frozen(self.widths[rows]),
            containers=self.containers,
            container=_frozen(self.container[rows]),
            offsets=_frozen(self.offsets[rows]),
            sizes=_frozen(self.sizes[rows]),
            names=_frozen(names),
            name_ends=_frozen(ends),
            flags=_frozen(self.flags[rows]),
            root=self.root,
        )

    def save(self, folder: str | os.PathLike[str], *, movable: str | os.PathLike[str] | None = None) -> None:
        """Write one .npy a column and a manifest, all or nothing. Containers inside the folder `movable` (which must
        hold `folder` too) are stored relative to it, so that the whole may be moved.

        Raises FileExistsError where `folder` exists.
        """
        folder = Path(folder).absolute()
        if folder.exists():
            raise FileExistsError(f"{folder} exists; an index is never overwritten in place")
        with publish(folder) as temporary:
            self.write_columns(temporary, folder, Path(movable).absolute() if movable else None)

    def write_columns(self, folder: Path, final_folder: Path, movable: Path | None = None) -> None:
        """The files of `save` into the existing `folder`, which will be renamed to `final_folder` by the caller."""
        for column in _COLUMNS:
            np.save(folder / f"{column}.npy", getattr(self, column))
        containers = [
            os.path.relpath(path, final_folder) if movable and Path(path).is_relative_to(movable) else path
            for path in self.containers
        ]
        manifest = {
            "format": _FORMAT,
            "num_rows": len(self),
            "classes": self.classes,
            "containers": containers,
            "root": self.root,
            "fingerprint": self.fingerprint,
        }
        (folder / "manifest.json").write_text(json.dumps(manifest))

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Index:
        """An index that `save` wrote, its columns mapped read-only: ranks of one node share the pages.

        Raises ValueError where the folder holds no complete index of this format.
        """
        folder = Path(folder).absolute()
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
            columns = {name: _mapped(folder / f"{name}.npy") for name in _COLUMNS}
            wrong = _wrong(manifest, columns)
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(
                f"{folder} holds no readable index ({error}); delete it and prepare the set again"
            ) from error
        if wrong:
            raise ValueError(f"{folder} holds no index that this version reads ({wrong}): prepare the set again")
        containers = tuple(os.path.normpath(folder / path) for path in manifest["containers"])
        index = cls(tuple(manifest["classes"]), containers=containers, root=manifest["root"], **columns)
        index.__dict__["fingerprint"] = manifest["fingerprint"]  # fills the cached property: no hashing at start
        return index


def _wrong(manifest: Any, columns: dict[str, np.ndarray]) -> str:
    """What is not as `save` writes it. Looks at every row once: 7 ms for ImageNet."""
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        return f"its format is not {_FORMAT}"
    texts = [manifest.get("root"), manifest.get("fingerprint")]
    for name in ("classes", "containers"):
        if not isinstance(manifest.get(name), list):
            return f"{name} is no list"
        texts += manifest[name]
    if not all(isinstance(text, str) and "\0" not in text for text in texts):
        return "classes, containers, root and fingerprint are not all texts"
    num_rows = manifest.get("num_rows")
    for name, kind in _COLUMNS.items():
        column = columns[name]
        if column.dtype != kind or column.ndim != 1 or (name != "names" and len(column) != num_rows):
            return f"{name} is {column.dtype} {column.shape}, not {np.dtype(kind)} [{num_rows}]"
    bounds = {
        "labels": (0, len(manifest["classes"]) - 1),
        "container": (-1, len(manifest["containers"]) - 1),
        "name_ends": (0, len(columns["names"])),
        **dict.fromkeys(("heights", "widths", "offsets", "sizes"), (0, None)),
    }
    for name, (least, most) in bounds.items():
        column = columns[name]
        if len(column) and (column.min() < least or (most is not None and column.max() > most)):
            return f"{name} has values outside {least} to {most}"
    return ""


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array


def _mapped(path: Path) -> np.ndarray:
    # An empty column has nothing to map; asarray drops the memmap subclass, whose scalar reads are slow.
    empty = path.stat().st_size <= 128
    try:
        return _frozen(np.asarray(np.load(path, mmap_mode=None if empty else "r")))
    except Exception as error:  # numpy's parser of a header lets through whatever Python's tokenizer raises
        raise ValueError(f"{path.name}: {error}") from error
