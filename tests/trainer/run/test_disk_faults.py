"""A disk that refuses once, at any write of a whole run: nothing good is lost, and the run comes to the same end."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from trainer.run.checkpoint import load_latest
from trainer.telemetry.jsonl import read_rows

SETTINGS = [
    "checkpoint.every=2steps",
    "checkpoint.keep=2",
    "checkpoint.keep_best=true",
    "run.evaluate_every=1",
    "run.log_every=3",
    "run.record_ids=true",
    "meta.interval=2",
]
NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EIO)


class Writes:
    """What a process does to `folder`'s files, counted; the `refused`-th operation fails with `number`."""

    def __init__(self, folder: Path, refused: int, number: int) -> None:
        self.folder, self.refused, self.number, self.seen = str(folder), refused, number, list[str]()
        self._handles: set[int] = set()

    def count(self, what: str) -> None:
        self.seen.append(what)
        if len(self.seen) - 1 == self.refused:
            raise OSError(self.number, os.strerror(self.number))

    def _here(self, path: Any) -> bool:
        return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(self.folder)

    def by_path(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(path: Any, *more: Any, **options: Any) -> Any:
            if self._here(path):
                self.count(name)
            return real(path, *more, **options)

        return operation

    def os_open(self, path: Any, flags: int, *more: Any, **options: Any) -> int:
        written = self._here(path) and bool(flags & (os.O_WRONLY | os.O_RDWR))
        if written:
            self.count("open")
        handle = OPEN(path, flags, *more, **options)
        if written:
            self._handles.add(handle)
        return handle

    def os_write(self, handle: int, content: bytes) -> int:
        if handle in self._handles:
            self.count("write")
        return WRITE(handle, content)

    def os_fsync(self, handle: int) -> None:
        self.count("fsync")
        FSYNC(handle)

    def io_open(self, path: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
        if not (self._here(path) and set(mode) & set("wax")):
            return IO_OPEN(path, mode, *more, **options)
        self.count("open")
        file = IO_OPEN(path, mode, *more, **options)
        return Refusing(file, self)


class Refusing:
    """A file whose first write is counted: a checkpoint has hundreds, one like the other."""

    def __init__(self, file: Any, writes: Writes) -> None:
        self._file, self._count = file, writes.count

    def write(self, content: Any) -> Any:
        self._count("write")
        self._count = lambda _: None
        return self._file.write(content)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __enter__(self) -> Refusing:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


OPEN, WRITE, FSYNC, IO_OPEN = os.open, os.write, os.fsync, io.open


@contextmanager
def refusing(folder: Path, refused: int, number: int = errno.ENOSPC) -> Iterator[Writes]:
    writes = Writes(folder, refused, number)
    with pytest.MonkeyPatch.context() as patch:
        for name in ("mkdir", "rename", "replace", "link", "unlink", "rmdir", "chmod"):
            patch.setattr(os, name, writes.by_path(name, getattr(os, name)))
        patch.setattr(os, "open", writes.os_open)
        patch.setattr(os, "write", writes.os_write)
        patch.setattr(os, "fsync", writes.os_fsync)
        patch.setattr(io, "open", writes.io_open)
        yield writes


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    found = load_latest(run)
    assert found is not None
    return found.tensors


PARTS = 24


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    """The run that no disk refused: its tensors, and how many operations it took."""
    return {}


@pytest.mark.parametrize("part", range(PARTS))
def test_refused_once(earlybird: Any, tmp_path: Path, whole: dict[str, Any], part: int) -> None:
    run = tmp_path / "run"
    if not whole:
        with refusing(run, -1) as writes:
            assert earlybird.train(run, *SETTINGS).code == 0
        whole |= {"tensors": tensors_of(run), "number": len(writes.seen)}
        assert {"mkdir", "rename", "replace", "link", "fsync", "open", "write"} <= set(writes.seen)
        run = tmp_path / "other"
    number = NUMBERS[part % 3]
    with refusing(run, part * whole["number"] // PARTS, number) as writes:
        outcome = earlybird.train(run, *SETTINGS)
    assert "Traceback" not in outcome.err
    rows = read_rows(run / "log.jsonl")
    saved = [row["iteration"] for row in rows if row["event"] == "checkpoint"]
    found = load_latest(run)
    assert (found.iteration if found else 0) >= max(saved, default=0), "what was said to be safe is"
    if outcome.code:
        assert (outcome.code, os.strerror(number) in outcome.err) == (2, True), outcome.err
        assert earlybird.train(run, *SETTINGS).code == 0
    ours = tensors_of(run)
    assert all(torch.equal(ours[name], value) for name, value in whole["tensors"].items())
