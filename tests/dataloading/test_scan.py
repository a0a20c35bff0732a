"""Headers agree with Pillow; every damaged image gets its reason, and no bytes at all can make the checks fail."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataloading.header import FIRST_READ, REASONS, BadImageError, Header, read_header
from dataloading.index import CMYK, EXIF_ROTATED, GRAY, HUGE, NOT_JPEG, PROGRESSIVE, SIXTEEN_BIT, Index
from dataloading.scan import Progress, Source, decode_rgb, in_order, scan_headers, verify_image


def encode(mode: str, size: tuple[int, int], kind: str, **options: object) -> bytes:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(values).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def deep_png(size: tuple[int, int] = (9, 5)) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, size[0] * size[1]).astype(np.uint16).reshape(size[1], size[0])).save(
        stream, "PNG"
    )
    return stream.getvalue()


def header(data: bytes) -> Header:
    return read_header(lambda offset, count: data[offset : offset + count], len(data))


def exif(orientation: int, comment: int = 0) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    tags[0x010E] = "x" * comment
    return tags


JPEG = encode("RGB", (33, 21), "JPEG")
USABLE = {
    "plain": (JPEG, 0),
    "gray": (encode("L", (33, 21), "JPEG"), GRAY),
    "cmyk": (encode("CMYK", (33, 21), "JPEG"), CMYK),
    "progressive": (encode("RGB", (33, 21), "JPEG", progressive=True), PROGRESSIVE),
    "exif": (encode("RGB", (33, 21), "JPEG", exif=exif(6, comment=2 * FIRST_READ)), EXIF_ROTATED),
    "upright": (encode("RGB", (33, 21), "JPEG", exif=exif(1)), 0),
    "one pixel": (encode("RGB", (1, 1), "JPEG"), 0),
    "long": (encode("RGB", (20_000, 10), "JPEG"), HUGE),
    "png": (encode("RGB", (33, 21), "PNG"), NOT_JPEG),
    "palette": (encode("P", (33, 21), "PNG", transparency=b"\0\7"), NOT_JPEG),
    "16 bit": (deep_png(), NOT_JPEG | SIXTEEN_BIT | GRAY),
    "webp": (encode("RGB", (33, 21), "WEBP"), NOT_JPEG),
    "bmp": (encode("RGB", (33, 21), "BMP"), NOT_JPEG),
    "tiff": (encode("L", (33, 21), "TIFF"), NOT_JPEG | GRAY),
    "pnm": (encode("RGB", (33, 21), "PPM"), NOT_JPEG),
}
_HUGE_PNG = bytearray(encode("RGB", (4, 4), "PNG"))
_HUGE_PNG[16:24] = (60_000).to_bytes(4, "big") * 2
BROKEN = {
    "zero_bytes": b"",
    "truncated": JPEG[: len(JPEG) * 2 // 3],
    "not_an_image": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "unsupported": encode("P", (9, 5), "GIF"),
    "too_large": bytes(_HUGE_PNG),
    "damaged": JPEG[:2] + b"\x12" * 200,
}


@pytest.mark.parametrize("name", USABLE)
def test_usable_images_have_pillows_size_and_their_flags(name: str) -> None:
    data, flags = USABLE[name]
    found = header(data)
    with Image.open(io.BytesIO(data)) as image:
        assert (found.width, found.height, found.format) == (*image.size, image.format)
    assert found.flags == flags
    assert verify_image(data) is None
    assert decode_rgb(data).shape == (found.height, found.width, 3)


@pytest.mark.parametrize("reason", BROKEN)
def test_broken_images_get_their_reason(reason: str) -> None:
    assert verify_image(BROKEN[reason]) == reason
    assert reason in REASONS


def test_random_bytes_and_a_cut_inside_the_header() -> None:
    assert verify_image(np.random.default_rng(1).bytes(5000)) == "not_an_image"
    for length in range(2, 150, 7):
        assert verify_image(JPEG[:length]) == "truncated"


@given(st.sampled_from([data for data, _ in USABLE.values() if len(data) < 9000]), st.data())
@settings(max_examples=150, deadline=None)
def test_no_damage_raises_anything_else(data: bytes, draw: st.DataObject) -> None:
    damaged = bytearray(data[: draw.draw(st.integers(0, len(data)))])
    for position in draw.draw(st.lists(st.integers(0, max(0, len(damaged) - 1)), max_size=4)):
        damaged[position : position + 1] = draw.draw(st.binary(min_size=1, max_size=1))
    reason = verify_image(bytes(damaged))
    assert reason is None or reason in REASONS


def test_pixels_are_the_stored_ones_and_16_bit_is_cut_not_clipped() -> None:
    turned, upright = decode_rgb(USABLE["exif"][0]), decode_rgb(USABLE["plain"][0])
    np.testing.assert_array_equal(turned, upright)
    deep = np.linspace(0, 65535, 45).astype(np.uint16) >> 8
    np.testing.assert_array_equal(decode_rgb(deep_png())[..., 1].ravel(), deep)


def test_scan_fills_the_columns_and_takes_broken_rows_out(tmp_path: Path) -> None:
    files = [*(data for data, _ in USABLE.values()), *BROKEN.values()] * 30
    blob = tmp_path / "images.bin"
    blob.write_bytes(b"".join(files))
    sizes = np.array([len(data) for data in files])
    index = Index.build(
        ["a", "b"],
        np.arange(len(files)) % 2,
        [f"{row}.jpg" for row in range(len(files))],
        sizes=sizes,
        offsets=np.cumsum(sizes) - sizes,
        containers=[str(blob)],
        container=np.zeros(len(files)),
    )
    seen: list[Progress] = []
    good, bad = scan_headers(index, "train", num_threads=3, progress=seen.append)
    # A header says nothing about a cut further on: "truncated" stays in.
    expected = [row for row in range(len(files)) if row % (len(USABLE) + len(BROKEN)) not in (15, 17, 18, 19, 20)]
    assert [good.name(row) for row in range(len(good))] == [f"{row}.jpg" for row in expected]
    assert [entry.reason for entry in bad[:5]] == ["zero_bytes", "not_an_image", "unsupported", "too_large", "damaged"]
    assert good.widths[0] == 33
    assert good.heights[0] == 21
    assert (seen[-1].done, seen[-1].eta_seconds) == (len(files), 0)
    with Source(good) as source:
        assert source.read(4) == USABLE["exif"][0]


def test_a_missing_file_is_unreadable_and_a_short_container_truncated(tmp_path: Path) -> None:
    (tmp_path / "short.tar").write_bytes(b"abc")
    index = Index.build(
        ["a"],
        [0, 0],
        ["gone.jpg", "in.jpg"],
        sizes=[0, 9],
        containers=[str(tmp_path / "short.tar")],
        container=[-1, 0],
        root=str(tmp_path),
    )
    with Source(index) as source:
        for row, reason in ((0, "unreadable"), (1, "truncated")):
            with pytest.raises(BadImageError) as caught:
                source.read(row)
            assert caught.value.reason == reason


def test_results_come_in_order_and_an_error_stops_the_work() -> None:
    parts = [range(first, first + 3) for first in range(0, 300, 3)]
    assert list(in_order(lambda part: part.start, parts, 8)) == list(range(0, 300, 3))
    with pytest.raises(ZeroDivisionError):
        list(in_order(lambda part: 1 // (part.start - 30), parts, 8))
