"""Width, height and oddities of an image from its first bytes, without decoding it."""

from __future__ import annotations

import io
import struct
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from dataloading.index import CMYK, EXIF_ROTATED, GRAY, HUGE, NOT_JPEG, PROGRESSIVE, SIXTEEN_BIT

# Why an image cannot be used. A closed set: it is also a label of the bad-sample counter.
REASONS = ("unreadable", "zero_bytes", "not_an_image", "truncated", "damaged", "unsupported", "too_large")
MAX_PIXELS = 89_478_485  # Pillow's own limit against decompression bombs: 256 MiB of RGB
HUGE_SIDE = 8_192
FIRST_READ = 4_096  # bytes; one page. Holds the size of all but JPEGs with a long Exif or colour profile

_QUIET = threading.Lock()

Read = Callable[[int, int], bytes]  # (offset, count) -> up to count bytes of the image


class BadImageError(ValueError):
    """An image that cannot be used; `reason` is one of REASONS."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class Header:
    height: int
    width: int
    flags: int
    format: str  # Pillow's name


def read_header(read: Read, size: int) -> Header:
    """The header of an image of `size` bytes. Raises BadImageError."""
    if size == 0:
        raise BadImageError("zero_bytes")
    head = read(0, FIRST_READ)
    if head[:2] == b"\xff\xd8":
        header = _jpeg(head, read)
    elif head[:8] == b"\x89PNG\r\n\x1a\n":
        header = _png(head)
    else:
        header = _other(head, read, size)
    if header.height < 1 or header.width < 1:
        raise BadImageError("damaged", f"{header.width}x{header.height} pixels")
    if header.height * header.width > MAX_PIXELS:
        raise BadImageError("too_large", f"{header.width}x{header.height} pixels; at most {MAX_PIXELS:,} are decoded")
    huge = HUGE if max(header.height, header.width) > HUGE_SIDE else 0
    return Header(header.height, header.width, header.flags | huge, header.format)


def _jpeg(head: bytes, read: Read) -> Header:
    """Walk the marker segments up to the frame header (ITU-T T.81, B.2)."""

    def at(position: int, count: int) -> bytes:
        data = head[position : position + count]
        if len(data) < count:
            data = read(position, count)
            if len(data) < count:
                raise BadImageError("truncated", "ends inside the header")
        return data

    position, flags = 2, 0
    while True:
        prefix, marker = at(position, 2)
        if prefix != 0xFF:
            raise BadImageError("damaged", f"no JPEG marker at byte {position}")
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD7:  # stands alone, without a length
            position += 2
            continue
        if marker in (0xD8, 0xD9, 0xDA):
            raise BadImageError("damaged", "JPEG without a frame header")
        length = int.from_bytes(at(position + 2, 2), "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            break
        if marker == 0xE1 and length > 14 and at(position + 4, 6) == b"Exif\0\0":
            flags |= _exif_rotated(at(position + 10, length - 8))
        position += 2 + length
    precision, height, width, components = struct.unpack(">BHHB", at(position + 4, 6))
    if marker not in (0xC0, 0xC1, 0xC2) or precision != 8 or components not in (1, 3, 4):
        raise BadImageError("unsupported", f"JPEG process SOF{marker - 0xC0}, {precision} bit, {components} components")
    flags |= PROGRESSIVE if marker == 0xC2 else 0
    flags |= {1: GRAY, 3: 0, 4: CMYK}[components]
    return Header(height, width, flags, "JPEG")


def _exif_rotated(tiff: bytes) -> int:
    """EXIF_ROTATED if the Exif block's first directory has an orientation (tag 0x0112) other than upright."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 10:
        return 0
    (directory,) = struct.unpack_from(order + "I", tiff, 4)
    if directory + 2 > len(tiff):
        return 0
    (num_entries,) = struct.unpack_from(order + "H", tiff, directory)
    for entry in range(directory + 2, min(directory + 2 + 12 * num_entries, len(tiff) - 11), 12):
        tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, entry)
        if tag == 0x0112 and kind == 3:
            return EXIF_ROTATED if 2 <= value <= 8 else 0
    return 0


def _png(head: bytes) -> Header:
    if len(head) < 33:
        raise BadImageError("truncated", "ends inside the header")
    if head[12:16] != b"IHDR":
        raise BadImageError("damaged", "PNG does not begin with IHDR")
    width, height, depth, colour = struct.unpack(">IIBB", head[16:26])
    flags = NOT_JPEG | (SIXTEEN_BIT if depth == 16 else 0) | (GRAY if colour in (0, 4) else 0)
    return Header(height, width, flags, "PNG")


def _other(head: bytes, read: Read, size: int) -> Header:
    formats = {b"RIFF": "WEBP", b"BM": "BMP", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"P5": "PPM", b"P6": "PPM"}
    found = next((name for magic, name in formats.items() if head.startswith(magic)), None)
    if head[:6] in (b"GIF87a", b"GIF89a"):
        raise BadImageError("unsupported", "GIF")
    if found is None or (found == "WEBP" and head[8:12] != b"WEBP"):
        raise BadImageError("not_an_image", f"begins with {head[:12]!r}")
    try:
        with open_image(read(0, size), found) as image:
            gray = GRAY if image.mode in ("1", "L", "LA", "I", "I;16", "F") else 0
            deep = SIXTEEN_BIT if image.mode in ("I", "I;16", "I;16B", "F") else 0
            cmyk = CMYK if image.mode == "CMYK" else 0
            return Header(image.height, image.width, NOT_JPEG | gray | deep | cmyk, found)
    except Image.DecompressionBombError as error:
        raise BadImageError("too_large", str(error)) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise BadImageError("damaged", f"{found}: {error}") from error


def open_image(data: bytes, kind: str) -> Image.Image:
    """Pillow's image, without its warnings: they are of oddities in the metadata, on which no pixel depends.

    Not decoded yet, but for TIFF, whose tags are read again on decoding. Raises what Pillow raises.
    """
    with _QUIET, warnings.catch_warnings():  # the filters are the whole process's: one thread at a time, about 40 us
        warnings.simplefilter("ignore")
        image = Image.open(io.BytesIO(data), formats=[kind])
        if kind == "TIFF":
            image.load()
        return image
