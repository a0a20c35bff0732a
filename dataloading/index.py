"""The table of a split's images: where each lies, how large it is, what it shows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

PIXELS = 1  # flag: the bytes are uint8 [height, width, 3], not an encoded image


@dataclass(frozen=True)
class Index:
    """Columns of one split, one row an image; read-only, memory-mapped where they come from disk.

    labels, heights, widths  [N] int32; heights and widths are the stored pixels, EXIF rotation ignored
    containers   paths of the files that hold images back to back (tar shards, pixel arrays)
    container    [N] int32, which of `containers` holds the row; -1: the row is a file of its own, named by `name`
    offsets, sizes  [N] int64, bytes inside the container (a file of its own: 0 and the file's size)
    names, name_ends  names of all rows as one utf-8 blob, and [N] int64 where each ends
    flags        [N] uint8
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

    def __len__(self) -> int:
        return int(self.labels.shape[0])

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def name(self, row: int) -> str:
        """The image's file or member name (a full path for a file of its own)."""
        start = int(self.name_ends[row - 1]) if row else 0
        return bytes(self.names[start : int(self.name_ends[row])]).decode("utf-8", "surrogateescape")
