"""Reading every image once: headers for the index, or whole images to prove that they decode."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from dataloading.header import BadImageError, Header, open_image, read_header
from dataloading.index import PIXELS, Index
from dataloading.quarantine import Quarantined

_ROWS_PER_TASK = 256  # a task costs about 50 us to hand over, a header 10 to 50 us to read
T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """How far a long reading job is: `done` of `total` images of `what`, and the seconds it still needs."""

    what: str
    done: int
    total: int
    seconds: float
    eta_seconds: float


ProgressCallback = Callable[[Progress], None]


class Meter:
    """Counts images and calls `callback` about four times a second, and at the end."""

    def __init__(self, what: str, total: int, callback: ProgressCallback | None) -> None:
        self.what, self.total, self.callback = what, total, callback
        self.done, self.skipped, self.started, self.last = 0, 0, time.monotonic(), 0.0

    def skip(self, count: int) -> None:
        """Count images that an earlier run has done: they say nothing about the pace."""
        self.skipped += count
        self.add(count)

    def add(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if self.callback and (now - self.last > 0.25 or self.done >= self.total):
            self.last = now
            seconds, worked = now - self.started, self.done - self.skipped
            eta = seconds * (self.total - self.done) / worked if worked else float("inf")
            self.callback(Progress(self.what, self.done, self.total, seconds, eta if self.done < self.total else 0.0))


def num_workers(requested: int = 0) -> int:
    """Reading threads: `requested`, or four a core, since most of their time is spent waiting for the disk."""
    return requested or min(64, 4 * len(os.sched_getaffinity(0)))


class Source:
    """Reads an index's bytes by row from several threads; containers stay open between reads."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self._descriptors: dict[int, int] = {}
        self._lock = threading.Lock()

    def read(self, row: int) -> bytes:
        """The row's bytes. Raises BadImageError("unreadable") or, where fewer are there, BadImageError("truncated")."""
        with _Opened(self, row) as (read, size):
            data = read(0, size)
        if len(data) < size:
            raise BadImageError("truncated", f"{len(data):,} of {size:,} bytes are there")
        return data

    def header(self, row: int) -> tuple[Header, int]:
        """The row's header and its size in bytes. Raises BadImageError."""
        with _Opened(self, row) as (read, size):
            return read_header(read, size), size

    def container(self, number: int) -> int:
        with self._lock:
            if number not in self._descriptors:
                self._descriptors[number] = os.open(self.index.containers[number], os.O_RDONLY)
            return self._descriptors[number]

    def close(self) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Opened:
    """One row's (read, size) while its file is open."""

    def __init__(self, source: Source, row: int) -> None:
        self.source, self.row, self.own = source, row, -1

    def __enter__(self) -> tuple[Callable[[int, int], bytes], int]:
        index, row = self.source.index, self.row
        number = int(index.container[row])
        try:
            if number < 0:
                descriptor = self.own = os.open(index.name(row), os.O_RDONLY)
                base, size = 0, os.fstat(descriptor).st_size
            else:
                descriptor = self.source.container(number)
                base, size = int(index.offsets[row]), int(index.sizes[row])
        except OSError as error:
            raise BadImageError("unreadable", error.strerror or str(error)) from error

        def read(offset: int, count: int) -> bytes:
            try:
                return os.pread(descriptor, max(0, min(count, size - offset)), base + offset)
            except OSError as error:
                raise BadImageError("unreadable", error.strerror or str(error)) from error

        return read, size

    def __exit__(self, *_: object) -> None:
        if self.own >= 0:
            os.close(self.own)


def scan_headers(
    index: Index, split: str, *, num_threads: int = 0, progress: ProgressCallback | None = None
) -> tuple[Index, list[Quarantined]]:
    """The index with heights, widths, sizes and flags filled from the images' headers, without the unusable rows,
    and those rows with the reason. Rows of raw pixels are taken as they are."""
    num_rows = len(index)
    heights, widths = index.heights.copy(), index.widths.copy()
    sizes, flags = index.sizes.copy(), index.flags.copy()
    bad: list[tuple[int, BadImageError]] = []

    with Source(index) as source:

        def scan(rows: range) -> int:
            for row in rows:
                if flags[row] & PIXELS:
                    continue
                try:
                    header, sizes[row] = source.header(row)
                    heights[row], widths[row], flags[row] = header.height, header.width, header.flags
                except BadImageError as error:
                    bad.append((row, error))
            return len(rows)

        meter = Meter(f"reading headers: {split}", num_rows, progress)
        rows = range(num_rows)
        parts = (rows[first : first + _ROWS_PER_TASK] for first in range(0, num_rows, _ROWS_PER_TASK))
        for done in in_order(scan, parts, num_workers(num_threads)):
            meter.add(done)

    quarantined = [
        Quarantined(index.stored_name(row), split, index.classes[index.labels[row]], error.reason, error.detail)
        for row, error in sorted(bad, key=lambda pair: pair[0])
    ]
    filled = Index(
        index.classes,
        index.labels,
        heights,
        widths,
        index.containers,
        index.container,
        index.offsets,
        sizes,
        index.names,
        index.name_ends,
        flags,
        index.root,
    )
    keep = np.ones(num_rows, dtype=bool)
    keep[[row for row, _ in bad]] = False
    return filled.subset(np.flatnonzero(keep)), quarantined


def in_order(work: Callable[[range], T], parts: Iterable[range], num_threads: int) -> Iterator[T]:
    """work(part) for every part on `num_threads` threads, results in the parts' order, a bounded number in flight."""
    with ThreadPoolExecutor(num_threads) as pool:
        pending: list[Future[T]] = []
        try:
            for part in parts:
                pending.append(pool.submit(work, part))
                if len(pending) >= 4 * num_threads:
                    yield pending.pop(0).result()
            while pending:
                yield pending.pop(0).result()
        finally:
            for future in pending:
                future.cancel()


def decode_rgb(data: bytes) -> np.ndarray:
    """An encoded image as uint8 [height, width, 3], stored pixels (Exif rotation ignored), 16 bit cut to 8.

    Raises BadImageError with the reason.
    """
    header = read_header(lambda offset, count: data[offset : offset + count], len(data))
    try:
        with open_image(data, header.format) as image:
            image.load()
            if image.mode in ("I", "I;16", "I;16B"):
                gray = (np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8)
                return np.repeat(gray[:, :, None], 3, axis=2)
            if image.mode == "P" and "transparency" in image.info:
                return np.asarray(image.convert("RGBA").convert("RGB"))
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, IndexError, struct.error) as error:
        message = str(error)
        cut = "truncated" in message or "Truncated" in message
        raise BadImageError("truncated" if cut else "damaged", message) from error


def verify_image(data: bytes) -> str | None:
    """Why this image cannot be used (one of header.REASONS), or None: every pixel was decoded."""
    try:
        decode_rgb(data)
    except BadImageError as error:
        return error.reason
    return None
