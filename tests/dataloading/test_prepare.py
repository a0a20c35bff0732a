"""prepare: broken images are named and left out, odd ones still train, and killing it changes nothing but the time."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataloading.config import DataConfig
from dataloading.datasets.open import ImageSet, open_dataset
from dataloading.header import read_header
from dataloading.index import CMYK, NOT_JPEG, SIXTEEN_BIT, Index
from dataloading.prepare import PrepareOptions, PrepareResult, prepare
from dataloading.quarantine import read_quarantine
from dataloading.scan import Progress, Source, decode_rgb, verify_image

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def encode(
    seed: int, kind: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = (40, 30), **options: object
) -> bytes:
    smooth = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(smooth).resize(size, Image.Resampling.BILINEAR).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def rotated() -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = 6
    return tags


def deep() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.linspace(0, 65535, 1200).astype(np.uint16).reshape(30, 40)).save(stream, "PNG")
    return stream.getvalue()


PLAIN = {f"plain{number}.JPEG": encode(number) for number in range(6)}
ODD = {  # every one of them trains
    "bmp.bmp": encode(20, "BMP"),
    "cmyk.JPEG": encode(21, mode="CMYK"),
    "deep.png": deep(),
    "gray.JPEG": encode(22, mode="L"),
    "long.JPEG": encode(23, size=(20_000, 10)),
    "one.JPEG": encode(24, size=(1, 1)),
    "png.JPEG": encode(25, "PNG"),
    "rotated.JPEG": encode(26, exif=rotated()),
    "webp.JPEG": encode(27, "WEBP", quality=90),
}
BROKEN = {
    "cut.JPEG": (encode(30, size=(300, 200))[:1500], "truncated"),
    "empty.JPEG": (b"", "zero_bytes"),
    "page.JPEG": (b"<!DOCTYPE html><title>404</title>", "not_an_image"),
    "random.JPEG": (np.random.default_rng(3).bytes(900), "not_an_image"),
}


def plant(root: Path, files: dict[str, bytes]) -> Path:
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True)
            for file, content in {**PLAIN, **(files if (split, name) == ("train", "bee") else {})}.items():
                (root / split / name / file).write_bytes(content)
    return root


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    return plant(tmp_path / "set", {**ODD, **{name: content for name, (content, _) in BROKEN.items()}})


def tree(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def read(path: Path) -> ImageSet:
    return open_dataset(DataConfig(path=str(path), heldout=0), 0)


def images(index: Index) -> dict[str, bytes]:
    with Source(index) as source:
        return {index.stored_name(row).removeprefix("train/bee/"): source.read(row) for row in range(len(index))}


def test_broken_images_are_named_and_odd_ones_train(damaged: Path, tmp_path: Path) -> None:
    before = tree(damaged)
    reports: list[Progress] = []
    result = prepare(damaged, tmp_path / "out", PrepareOptions(shard_bytes=4000), progress=reports.append)
    assert tree(damaged) == before
    assert (result.num_images, result.num_classes, result.num_quarantined) == (24 + len(ODD), 2, len(BROKEN))
    assert (reports[-1].done, reports[-1].total, reports[-1].eta_seconds) == (24 + len(ODD) + 1, 24 + len(ODD) + 1, 0)

    left_out = {image.name: image for image in read_quarantine(tmp_path / "out" / "quarantine.jsonl")}
    assert {name.removeprefix("train/bee/"): image.reason for name, image in left_out.items()} == {
        name: reason for name, (_, reason) in BROKEN.items()
    }
    assert left_out["train/bee/cut.JPEG"].sha256 == hashlib.sha256(BROKEN["cut.JPEG"][0]).hexdigest()

    train = read(tmp_path / "out").train
    packed = images(train)
    for name in (*ODD, *PLAIN):
        original, stored = {**PLAIN, **ODD}[name], packed[name]
        header = read_header(lambda offset, count, data=stored: data[offset : offset + count], len(stored))
        assert header.format in ("JPEG", "PNG")
        assert not header.flags & (CMYK | SIXTEEN_BIT)
        assert verify_image(stored) is None
        changed = name in ("bmp.bmp", "cmyk.JPEG", "deep.png", "webp.JPEG")
        assert (stored != original) == changed
        difference = np.abs(decode_rgb(stored).astype(int) - decode_rgb(original))
        assert difference.mean() < (3 if name in ("cmyk.JPEG", "webp.JPEG") else 1e-9)
    rows = {train.stored_name(row): row for row in range(len(train))}
    assert train.widths[rows["train/bee/long.JPEG"]] == 20_000
    assert train.flags[rows["train/bee/deep.png"]] & NOT_JPEG

    converted = [json.loads(line) for line in (tmp_path / "out/converted.jsonl").read_text().splitlines()]
    assert [entry["name"].removeprefix("train/bee/") for entry in converted] == [
        "bmp.bmp", "cmyk.JPEG", "deep.png", "webp.JPEG",
    ]  # fmt: skip
    unusual = json.loads((tmp_path / "out/prepared.json").read_text())["unusual"]
    assert unusual == {"not_jpeg": 4, "cmyk": 1, "gray": 2, "exif_rotated": 1, "sixteen_bit": 1, "huge": 1}


def test_a_prepared_set_is_the_same_set_and_can_be_moved(tmp_path: Path) -> None:
    source = plant(tmp_path / "set", {})
    prepare(source, tmp_path / "out", PrepareOptions(shard_bytes=2000))
    shutil.move(tmp_path / "out", tmp_path / "moved")
    direct, packed = read(source), read(tmp_path / "moved")
    assert packed.fingerprint == direct.fingerprint
    assert images(packed.train) == images(direct.train)
    assert len(packed.train.containers) > 2

    (tmp_path / "moved/prepared.json").unlink()  # still plain WebDataset shards
    as_shards = read(tmp_path / "moved")
    assert list(images(as_shards.val).values()) == list(images(direct.val).values())
    np.testing.assert_array_equal(as_shards.train.labels, direct.train.labels)


def test_a_missing_or_cut_shard_is_refused(tmp_path: Path) -> None:
    prepare(plant(tmp_path / "set", {}), tmp_path / "out")
    os.truncate(tmp_path / "out/train-000000.tar", 1024)
    with pytest.raises(ValueError, match=r"train-000000.tar is missing or not [0-9,]+ bytes long"):
        read(tmp_path / "out")


@pytest.mark.parametrize("verify", ["header", "full"])
def test_index_only_checks_and_writes_no_image(damaged: Path, tmp_path: Path, verify: str) -> None:
    options = PrepareOptions(index_only=True, verify=verify)  # type: ignore[arg-type]
    result = prepare(damaged, tmp_path / "out", options)
    # A header cannot tell that the rest of a file is missing.
    assert result.num_quarantined == (4 if verify == "full" else 3)
    assert not list((tmp_path / "out").glob("*.tar"))
    found = read(tmp_path / "out").train
    assert found.name(0) == str(damaged / "train/ant/plain0.JPEG")
    assert ("cut.JPEG" in images(found)) == (verify == "header")
    with pytest.raises(ValueError, match="compressed and its plain copy lies in the cache"):
        prepare(shutil.make_archive(str(tmp_path / "a"), "gztar", damaged), tmp_path / "other", options)


def test_sides_are_limited(tmp_path: Path) -> None:
    source = plant(
        tmp_path / "set", {"big.JPEG": encode(1, size=(200, 100)), "big.png": encode(2, "PNG", size=(100, 200))}
    )
    prepare(source, tmp_path / "out", PrepareOptions(shortest_side=50))
    prepare(source, tmp_path / "longest", PrepareOptions(longest_side=50))
    for folder, sizes in (("out", ((100, 50), (50, 100))), ("longest", ((50, 25), (25, 50)))):
        train = read(tmp_path / folder).train
        stored = {train.stored_name(row).removeprefix("train/bee/"): row for row in range(len(train))}
        for name, size in zip(("big.JPEG", "big.png"), sizes, strict=True):
            assert (train.widths[stored[name]], train.heights[stored[name]]) == size
            assert Image.open(io.BytesIO(images(train)[name])).size == size
        assert images(train)["plain0.JPEG"] == PLAIN["plain0.JPEG"]


def test_raw_pixels_are_packed_without_loss(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    planes = np.random.default_rng(0).integers(0, 256, (6, 3072), dtype=np.uint8)
    records = np.concatenate([np.arange(12, dtype=np.uint8).reshape(6, 2), planes], axis=1)
    for name in ("train.bin", "test.bin"):
        (folder / name).write_bytes(records.tobytes())
    (folder / "fine_label_names.txt").write_text("\n".join(f"c{number}" for number in range(100)))
    prepare(folder, tmp_path / "out")
    decoded = np.stack([decode_rgb(data) for data in images(read(tmp_path / "out").train).values()])
    np.testing.assert_array_equal(decoded, planes.reshape(6, 3, 32, 32).transpose(0, 2, 3, 1))


def test_wrong_destinations_and_options_are_refused(damaged: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lies inside the source"):
        prepare(damaged, damaged / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="is not empty and was not made by prepare"):
        prepare(damaged, tmp_path / "full")
    prepare(damaged, tmp_path / "out")
    with pytest.raises(ValueError, match="another source or other options"):
        prepare(damaged, tmp_path / "out", PrepareOptions(quality=50))
    for options in ({"quality": 0}, {"shard_bytes": 0}, {"longest_side": 3}, {"shortest_side": 64, "index_only": True}):
        with pytest.raises(ValueError, match=next(iter(options))):
            PrepareOptions(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="choose header or full"):
        PrepareOptions(verify="none")  # type: ignore[arg-type]


# Kills its own process just before the n-th time that something is synced or renamed.
KILLED = """
import os, signal, sys
from dataloading.prepare import PrepareOptions, prepare
left = int(sys.argv[3])
def counted(original):
    def call(*args):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args)
    return call
for name in ("fsync", "rename", "replace"):
    setattr(os, name, counted(getattr(os, name)))
prepare(sys.argv[1], sys.argv[2], PrepareOptions(shard_bytes=3000))
print(left)
"""


def run(source: Path, destination: Path, kill_at: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", KILLED, str(source), str(destination), str(kill_at)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)


def test_killed_at_any_moment_it_ends_with_the_same_bytes(damaged: Path, tmp_path: Path) -> None:
    options = PrepareOptions(shard_bytes=3000)
    first: PrepareResult = prepare(damaged, tmp_path / "whole", options)
    expected = tree(tmp_path / "whole")
    num_moments = 10_000 - int(run(damaged, tmp_path / "counted", 10_000).stdout)
    assert tree(tmp_path / "counted") == expected
    assert num_moments > 30

    destination = tmp_path / "chain"  # killed again and again, each time a little later: 20 times in all
    moments = np.random.default_rng().integers(1, num_moments, 11)
    for moment in (1, *sorted(moments.tolist()), num_moments - 1):
        killed = run(damaged, destination, moment)
        assert killed.returncode in (0, -signal.SIGKILL), killed.stderr
        if killed.returncode and not (destination / "prepared.json").exists():
            with pytest.raises(ValueError, match="is half prepared; run prepare again"):
                read(destination)
    resumed = prepare(damaged, destination, options)
    assert tree(destination) == expected, moments
    assert (resumed.num_images, resumed.bytes) == (first.num_images, first.bytes)

    for moment in range(num_moments - 7, num_moments):  # around the index and the manifest
        assert run(damaged, tmp_path / f"late{moment}", moment).returncode == -signal.SIGKILL
        prepare(damaged, tmp_path / f"late{moment}", options)
        assert tree(tmp_path / f"late{moment}") == expected, moment
    again = prepare(damaged, destination, options)
    assert again.images_per_second == 0
    assert tree(destination) == expected
