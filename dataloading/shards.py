"""Packing images into shards: plain tar files in WebDataset layout, with the columns of what lies in them."""

from __future__ import annotations

import hashlib
import io
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from dataloading import tar
from dataloading.cache import publish_file, sync
from dataloading.datasets.prepared import WORK
from dataloading.header import BadImageError, Header, read_header
from dataloading.index import CMYK, PIXELS, SIXTEEN_BIT
from dataloading.quarantine import Quarantined
from dataloading.scan import Meter, Source, decode_rgb, in_order

_ROWS_PER_TASK = 4  # few, since a task's images wait in memory for their turn to be written


@dataclass(frozen=True)
class Limits:
    """What an image may be in a shard: sides in pixels, 0 = as it is; `quality` of what must be encoded again."""

    shortest_side: int = 0
    longest_side: int = 0
    quality: int = 95


@dataclass(frozen=True)
class Packed:
    """An image ready to be written; `change` says why its bytes are not the source's, or is empty."""

    data: bytes
    suffix: str
    header: Header
    change: str = ""


def pack_image(data: bytes, header: Header, limits: Limits, *, decode: bool) -> Packed:
    """The image as it goes into a shard. Raises BadImageError where it does not decode.

    Kept byte for byte: JPEG with one or three components, and PNG of 8 bit; both loaders and DALI's region decoder
    read these. CMYK JPEG and WebP become JPEG, 16-bit PNG, BMP, TIFF and PNM become PNG, and what is larger than the
    limits is shrunk. With `decode`, kept images are decoded too, to prove that they can be.
    """
    height, width = _limited(header.height, header.width, limits)
    why = []
    if (height, width) != (header.height, header.width):
        why.append(f"{header.width}x{header.height} to {width}x{height}")
    if header.format not in ("JPEG", "PNG"):
        why.append(header.format)
    why += [name for bit, name in ((CMYK, "CMYK"), (SIXTEEN_BIT, "16 bit")) if header.flags & bit]
    if not why:
        if decode:
            decode_rgb(data)
        return Packed(data, ".jpg" if header.format == "JPEG" else ".png", header)
    image = Image.fromarray(decode_rgb(data))
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    lossy = header.format in ("JPEG", "WEBP")
    encoded = encode(image, "JPEG" if lossy else "PNG", limits.quality)
    new = read_header(lambda offset, count: encoded[offset : offset + count], len(encoded))
    return Packed(encoded, ".jpg" if lossy else ".png", new, f"{', '.join(why)}; now {new.format}")


def encode(image: Image.Image, kind: str, quality: int) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **({"quality": quality} if kind == "JPEG" else {}))
    return stream.getvalue()


def _limited(height: int, width: int, limits: Limits) -> tuple[int, int]:
    scale = min(
        1.0,
        limits.shortest_side / min(height, width) if limits.shortest_side else 1.0,
        limits.longest_side / max(height, width) if limits.longest_side else 1.0,
    )
    return max(1, round(height * scale)), max(1, round(width * scale))


@dataclass
class Columns:
    """What one shard holds: source rows that are in it, in order, and the columns of its part of the index."""

    rows: list[int] = field(default_factory=list)
    heights: list[int] = field(default_factory=list)
    widths: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    flags: list[int] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    changed: list[dict[str, str]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        publish_file(path, json.dumps(asdict(self)).encode())

    @classmethod
    def open(cls, path: Path) -> Columns:
        content = json.loads(path.read_bytes())
        content["quarantined"] = [Quarantined(**entry) for entry in content["quarantined"]]
        return cls(**content)


def pack(
    source: Source,
    rows: range,
    split: str,
    shard: Path | None,
    limits: Limits,
    *,
    decode: bool,
    threads: int,
    meter: Meter,
) -> Columns:
    """Read the rows, check them, and write those that can be used to the tar `shard` (None: only check).

    The tar is written in the work folder beside its final place, synced, then renamed.
    """
    index = source.index

    def work(part: range) -> list[tuple[int, Packed | None, BadImageError | None, str]]:
        return [_checked(source, row, shard is not None, limits, decode) for row in part]

    columns = Columns()
    temporary = shard.parent / WORK / shard.name if shard else None
    output = open(temporary, "wb") if temporary else None  # noqa: SIM115
    position = 0
    parts = (rows[first : first + _ROWS_PER_TASK] for first in range(0, len(rows), _ROWS_PER_TASK))
    try:
        for done in in_order(work, parts, threads):
            for row, packed, error, sha256 in done:
                name, label = index.stored_name(row), int(index.labels[row])
                if packed is None or error is not None:
                    assert error is not None
                    columns.quarantined.append(
                        Quarantined(name, split, index.classes[label], error.reason, error.detail, sha256)
                    )
                    continue
                columns.rows.append(row)
                columns.heights.append(packed.header.height)
                columns.widths.append(packed.header.width)
                columns.flags.append(packed.header.flags)
                columns.sizes.append(len(packed.data))
                if output is None:
                    columns.offsets.append(int(index.offsets[row]))
                    continue
                member = tar.member(f"{row:08d}{packed.suffix}", packed.data)
                columns.offsets.append(position + tar.BLOCK)
                label_member = tar.member(f"{row:08d}.cls", str(label).encode())
                output.write(member + label_member)
                position += len(member) + len(label_member)
                if packed.change:
                    columns.changed.append({"name": name, "split": split, "change": packed.change})
            meter.add(len(done))
        if output and temporary and shard:
            output.write(tar.END)
            output.close()
            sync(temporary)
            os.replace(temporary, shard)
            sync(shard.parent)
    finally:
        if output:
            output.close()
    return columns


def _checked(
    source: Source, row: int, packing: bool, limits: Limits, decode: bool
) -> tuple[int, Packed | None, BadImageError | None, str]:
    data = b""
    index = source.index
    try:
        if index.flags[row] & PIXELS:
            height, width = int(index.heights[row]), int(index.widths[row])
            data = source.read(row)
            header = Header(height, width, PIXELS, "raw pixels")
            if not packing:
                return row, Packed(data, "", header), None, ""
            pixels = np.frombuffer(data, dtype=np.uint8).reshape(height, width, 3)
            data = encode(Image.fromarray(pixels), "PNG", limits.quality)
        else:
            data = source.read(row)
        header = read_header(lambda offset, count: data[offset : offset + count], len(data))
        if packing:
            return row, pack_image(data, header, limits, decode=decode), None, ""
        if decode:
            decode_rgb(data)
        return row, Packed(data, "", header), None, ""
    except BadImageError as error:
        return row, None, error, hashlib.sha256(data).hexdigest() if data else ""
