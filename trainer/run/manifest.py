"""The manifest of a checkpoint folder: what belongs to it, byte for byte; and files that reach the disk."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import stat
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

FORMAT = 1
MANIFEST = "manifest.json"
_CHUNK = 16 << 20
_ENTRY = {"size": int, "sha256": str}
_LARGEST = 64 << 20  # of a manifest: a real one has some 20 kB


class CheckpointError(RuntimeError):
    """A checkpoint could not be written or is not whole; the message says what to do."""


def write_manifest(folder: Path, iteration: int, files: dict[str, Any], meta: dict[str, Any]) -> None:
    """Write manifest.json, the folder's last file, and flush the folder.

    files  what write_file gave, by name; meta  the caller's JSON values
    """
    content = {
        "format": FORMAT,
        "iteration": iteration,
        "written_at": time.time(),
        "files": files,
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "meta": meta,
    }
    content = json.loads(json.dumps(content))  # the form that reading gives back: string keys, lists
    write_file(folder / MANIFEST, [json.dumps({**content, "sha256": _digest(content)}, indent=1).encode()])
    flush_folder(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest alone, verified by its own sha-256: format, iteration, written_at (Unix seconds), files (size and
    sha256 by name), versions, meta. CheckpointError says what is wrong."""
    path = Path(folder) / MANIFEST
    try:
        content = json.loads(_content(path, _LARGEST))
        digest = content.pop("sha256")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable ({error!r})") from error
    if digest != _digest(content):
        raise CheckpointError(f"{path} does not match its own sha-256")
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path} has format {content.get('format')!r}; this version reads format {FORMAT}")
    if wrong := _wrong(content):
        raise CheckpointError(f"{path} is no checkpoint's manifest ({wrong})")
    return content


def _wrong(content: dict[str, Any]) -> str:
    """What is not as `write_manifest` writes it: anybody can compute a sha-256."""
    for name, kind in {"iteration": int, "files": dict, "versions": dict, "meta": dict}.items():
        if type(content.get(name)) is not kind:
            return f"{name} is missing or of another kind"
    if content["iteration"] < 0:
        return f"iteration is {content['iteration']}"
    for name, entry in content["files"].items():
        if name in ("", ".", "..") or Path(name).name != name or not name.isprintable():  # no system opens a NUL
            return f"{name!r} is no file of its folder"
        if not isinstance(entry, dict) or {key: type(value) for key, value in entry.items()} != _ENTRY:
            return f"files[{name!r}] has not size and sha256"
    return ""


def write_file(path: Path, pieces: Iterable[bytes | memoryview]) -> dict[str, Any]:
    """Write what `pieces` are together and flush it to disk; its size and sha-256, as a manifest keeps them."""
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for piece in pieces:
            view = memoryview(piece)
            for start in range(0, len(view), _CHUNK):
                digest.update(view[start : start + _CHUNK])
                file.write(view[start : start + _CHUNK])
            size += len(view)
        file.flush()
        os.fsync(file.fileno())
    return {"size": size, "sha256": digest.hexdigest()}


def read_file(path: Path, size: int, sha256: str) -> bytes:
    """A file's bytes, verified; CheckpointError says what is wrong."""
    payload = _content(path, size)
    if len(payload) != size:
        held = f"{len(payload)}" if len(payload) < size else "more"
        raise CheckpointError(f"{path} has {held} bytes, its manifest says {size}")
    if hashlib.sha256(payload).hexdigest() != sha256:
        raise CheckpointError(f"{path} does not match the sha-256 in its manifest")
    return payload


def _content(path: Path, largest: int) -> bytes:
    """A file's bytes, one more than `largest` at most; CheckpointError where there are none.

    A link could lead out of the folder, and to read a pipe or a device may never end.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            held = os.fstat(handle)
            if not stat.S_ISREG(held.st_mode):
                raise CheckpointError(f"{path} is no ordinary file")
            with open(handle, "rb", closefd=False) as file:
                return file.read(min(largest, held.st_size) + 1)
        finally:
            os.close(handle)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing") from None
    except OSError as error:
        what = "it is a link" if error.errno == errno.ELOOP else error.strerror
        raise CheckpointError(f"{path} is not readable ({what})") from error


def flush_folder(folder: Path) -> None:
    """A rename or a new file survives a power cut only once its folder is flushed too."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
