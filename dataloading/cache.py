"""Folders that appear whole or not at all, and the user's cache of them."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """`$XDG_CACHE_HOME/earlybird`, or `~/.cache/earlybird`. Everything in it can be deleted and comes back."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "earlybird"


@contextmanager
def publish(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder`: filled by the caller, synced, then renamed; removed on an error.

    Where another process has published `folder` meanwhile, its result stays and ours is dropped.
    """
    temporary = folder.with_name(f".{folder.name}.{socket.gethostname()}.{os.getpid()}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        sync_folder(temporary)
        try:
            os.rename(temporary, folder)
        except OSError:
            if not folder.is_dir():
                raise
        sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish_file(path: Path, content: bytes) -> None:
    """Write a file under a temporary name, sync, rename over `path`."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_bytes(content)
    sync(temporary)
    os.replace(temporary, path)
    sync(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until a folder and all that is in it are on disk."""
    for parent, _, files in os.walk(folder, topdown=False):
        for name in files:
            sync(Path(parent, name))
        sync(Path(parent))


def sync(path: Path) -> None:
    """Wait until a file or folder is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one process at a time works on `folder`; the others wait here (a lock file beside it).

    Raises ValueError where the lock file cannot be written.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        handle = open(folder.with_name(f".{folder.name}.lock"), "w")  # noqa: SIM115
    except OSError as error:
        raise ValueError(
            f"{folder.parent} cannot be written ({error.strerror}); choose a folder that can "
            "(XDG_CACHE_HOME moves the cache)"
        ) from error
    with handle:
        fcntl.flock(handle, fcntl.LOCK_EX)  # the system drops it when the process ends, however it ends
        yield


def once(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, made by `build(temporary folder)` where it is not there yet; one process builds, the others wait."""
    if not folder.is_dir():
        with locked(folder):
            if not folder.is_dir():
                for dead in folder.parent.glob(f".{folder.name}.{socket.gethostname()}.*.partial"):
                    shutil.rmtree(dead, ignore_errors=True)  # of a killed process: we hold the lock
                with publish(folder) as temporary:
                    build(temporary)
    return folder
