"""The bytes of rows: slices of memory-mapped containers, or files of their own."""

from __future__ import annotations

import mmap
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from dataloading.header import BadImageError
from dataloading.index import Index

_PAGE = mmap.PAGESIZE


class Storage:
    """Reads rows of one index. Containers are mapped at their first use and stay mapped: their pages belong to the
    system's cache, which drops them at need, and ranks of one node share them.

    num_threads  reads of files of their own that are under way at once
    """

    def __init__(self, index: Index, num_threads: int = 1) -> None:
        self.index = index
        self._maps: dict[int, tuple[mmap.mmap, np.ndarray]] = {}
        self._pool = ThreadPoolExecutor(num_threads, "files") if (index.container < 0).any() else None

    def advise(self, rows: np.ndarray) -> None:
        """Ask the system to read ahead the containers' bytes of rows that come soon; returns at once."""
        index = self.index
        for row in rows.tolist():
            container = int(index.container[row])
            if container >= 0:
                start, size = int(index.offsets[row]), int(index.sizes[row])
                mapped, data = self._mapped(container)
                if 0 <= start < start + size <= len(data):
                    aligned = start // _PAGE * _PAGE
                    mapped.madvise(mmap.MADV_WILLNEED, aligned, start + size - aligned)

    def read(self, rows: np.ndarray) -> list[np.ndarray | BadImageError]:
        """Each row's bytes as [size] uint8 (a view where it lies in a container), or why they cannot be had."""
        own = [row for row in rows.tolist() if self.index.container[row] < 0]
        files = dict(zip(own, self._pool.map(self._attempt, own), strict=True)) if self._pool else {}
        return [files[row] if row in files else self._attempt(row) for row in rows.tolist()]

    def read_one(self, row: int) -> np.ndarray:
        """[size] uint8; raises BadImageError."""
        container, size = int(self.index.container[row]), int(self.index.sizes[row])
        if container < 0:
            try:
                with open(self.index.name(row), "rb", buffering=0) as file:
                    data = np.frombuffer(file.readall(), np.uint8)
            except OSError as error:
                raise BadImageError("unreadable", error.strerror or str(error)) from error
        else:
            start = int(self.index.offsets[row])
            data = self._mapped(container)[1][start : start + size]
            if len(data) < size:
                raise BadImageError("truncated", f"{self.index.containers[container]} ends before it")
        if not len(data):
            raise BadImageError("zero_bytes")
        return data

    def close(self) -> None:
        if self._pool:
            self._pool.shutdown()
        self._maps.clear()  # the views that are still in use keep their map alive

    def _attempt(self, row: int) -> np.ndarray | BadImageError:
        try:
            return self.read_one(row)
        except BadImageError as error:
            return error

    def _mapped(self, container: int) -> tuple[mmap.mmap, np.ndarray]:
        if container not in self._maps:
            path = self.index.containers[container]
            try:
                with open(path, "rb") as file:
                    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
            except (OSError, ValueError) as error:
                raise ValueError(
                    f"{path} cannot be mapped ({error}); check data.path, or prepare the set again"
                ) from error
            self._maps[container] = mapped, np.frombuffer(mapped, np.uint8)
        return self._maps[container]
