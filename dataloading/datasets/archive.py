"""An image folder inside one tar or zip: its members are read in place, nothing is unpacked unless compressed."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import lzma
import os
import shutil
import struct
import zipfile
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from dataloading import tar
from dataloading.cache import cache_folder, once
from dataloading.datasets.splits import VALIDATION_NAMES, Splits, check_classes, is_image_name, watch
from dataloading.index import Index

_MODULES: dict[str, Any] = {"gz": gzip, "bz2": bz2, "xz": lzma}
_MAGIC = {b"\x1f\x8b": "gz", b"BZh": "bz2", b"\xfd7zXZ\0": "xz", b"PK\3\4": "zip"}


def read_archive(path: Path) -> Splits:
    """Lists the images of an archive with <train>/<class>/* and <val>/<class>/*, one wrapping folder allowed.

    A compressed archive is first turned, once, into a plain tar in the cache folder.
    Raises ValueError where it is no tar or zip, or where a split or a class's images are missing.
    """
    watched = watch(path)
    kind = archive_kind(path)
    container = str(path)
    found = _zip_members(path) if kind == "zip" else None
    if found is None:
        container = container if kind == "tar" else str(plain_tar(path))
        found = list(tar.members(container))

    by_split: dict[str, dict[str, list[tar.Member]]] = {}
    for member in found:
        parts = PurePosixPath(member.name).parts
        depth = next((depth for depth in (0, 1) if len(parts) > depth + 2 and _is_split(parts[depth])), None)
        if depth is None or any(part.startswith(".") for part in parts) or not is_image_name(member.name):
            continue
        inside = replace(member, name="/".join(parts[depth:]))  # as in a folder, so that the fingerprint is the same
        by_split.setdefault(parts[depth], {}).setdefault(parts[depth + 1], []).append(inside)
    val = next((name for name in VALIDATION_NAMES if name in by_split), None)
    if "train" not in by_split or val is None:
        raise ValueError(
            f"{path} is no data set: it needs train/<class>/* and one of "
            f"{', '.join(f'{name}/<class>/*' for name in VALIDATION_NAMES)}; it has {sorted(by_split) or 'neither'}"
        )
    counts = [{name: len(files) for name, files in by_split[split].items()} for split in ("train", val)]
    classes = check_classes(str(path), *counts)

    def index(split: str) -> Index:
        rows = [
            (label, member)
            for label, name in enumerate(classes)
            for member in sorted(by_split[split][name], key=lambda member: member.name)
        ]
        return Index.build(
            classes,
            [label for label, _ in rows],
            [member.name for _, member in rows],
            offsets=[member.offset for _, member in rows],
            sizes=[member.size for _, member in rows],
            containers=(container,),
            container=[0] * len(rows),
        )

    return Splits(path.name, index("train"), index(val), watched=(watched, watch(container)))


def plain_tar(path: Path) -> Path:
    """An uncompressed tar with the same members, made once in the cache folder. Raises ValueError on damage."""
    key = hashlib.sha256(repr((str(path.resolve()), *watch(path)[1:])).encode()).hexdigest()[:32]
    try:
        folder = once(cache_folder() / "unpacked" / key, lambda temporary: _unpack(path, temporary / "images.tar"))
    except (EOFError, OSError, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}); copy it again, or free disk space") from error
    return folder / "images.tar"


def _unpack(path: Path, destination: Path) -> None:
    kind = archive_kind(path)
    with open(destination, "wb") as output:
        if kind in _MODULES:
            with _MODULES[kind].open(path, "rb") as stream:
                shutil.copyfileobj(stream, output, 1 << 20)
            return
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if is_image_name(info.filename):
                    output.write(tar.member(info.filename, archive.read(info)))
            output.write(tar.END)


def archive_kind(path: Path) -> str:
    """tar, zip, or a tar's compression (gz, bz2, xz), by content. Raises ValueError for anything else."""
    with open(path, "rb") as file:
        head = file.read(tar.BLOCK)
    kind = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    if kind is None and not tar.is_header(head):
        raise ValueError(f"{path} is neither a tar (plain, gz, bz2, xz) nor a zip; it begins with {head[:8]!r}")
    return kind or "tar"


def _zip_members(path: Path) -> list[tar.Member] | None:
    """The zip's images in place, or None where one of them is compressed or encrypted."""
    found = []
    with zipfile.ZipFile(path) as archive, open(path, "rb", buffering=0) as file:
        for info in archive.infolist():
            if info.is_dir() or not is_image_name(info.filename):
                continue
            if info.compress_type != zipfile.ZIP_STORED:
                return None
            local = os.pread(file.fileno(), 30, info.header_offset)
            name_length, extra_length = struct.unpack_from("<HH", local, 26)
            offset = info.header_offset + 30 + name_length + extra_length
            found.append(tar.Member(info.filename, offset, info.file_size))
    return found


def _is_split(name: str) -> bool:
    return name == "train" or name in VALIDATION_NAMES
