"""The data commands: what they print for programs, what they refuse, and that broken images end nothing."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image

import dataloading.prepare
from dataloading import shards
from dataloading.datasets.open import open_dataset
from dataloading.quarantine import read_quarantine
from dataloading.stream import Stream
from trainer.__main__ import main
from trainer.cli_data import num_bytes
from trainer.config import resolve
from trainer.telemetry.jsonl import read_rows


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Earlybird = Callable[..., Ended]


@pytest.fixture
def earlybird(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Earlybird:
    """Runs one command as the shell would, in this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def run(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["earlybird", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        return Ended(int(ended.value.code or 0), captured.out, captured.err)

    return run


def encode(seed: int, kind: str = "JPEG", mode: str = "RGB", size: tuple[int, int] = (40, 30), **more: Any) -> bytes:
    smooth = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(smooth).resize(size, Image.Resampling.BILINEAR).convert(mode).save(stream, kind, **more)
    return stream.getvalue()


PLAIN = {f"plain{number}.JPEG": encode(number) for number in range(8)}
CUT = encode(30, size=(300, 200))[:1500]
ODD = {
    "cmyk.JPEG": encode(21, mode="CMYK"),
    "gray.JPEG": encode(22, mode="L"),
    "png.JPEG": encode(25, "PNG"),
    "scans.JPEG": encode(26, progressive=True),
}
BROKEN = {  # planted in train/bee, and one in val/ant
    "train/bee/cut.JPEG": (CUT, "truncated"),
    "train/bee/empty.JPEG": (b"", "zero_bytes"),
    "train/bee/film.JPEG": (b"GIF89a" + bytes(40), "unsupported"),
    "train/bee/page.JPEG": (b"<!DOCTYPE html><title>404</title>", "not_an_image"),
    "val/ant/cut.JPEG": (CUT, "truncated"),
}
SMALL = (
    "--set=data.image_size=32", "--set=data.resize_size=36", "--set=data.heldout=0", "--set=optim.update_batch=8",
    "--set=model.num_exits=2", "--set=model.base=1", "--set=run.log_every=2",
)  # fmt: skip


def plant(root: Path, files: dict[str, bytes]) -> Path:
    for split in ("train", "val"):
        for name in ("ant", "bee"):
            (root / split / name).mkdir(parents=True)
            for file, content in PLAIN.items():
                (root / split / name / file).write_bytes(content)
    for file, content in files.items():
        (root / file).write_bytes(content)
    return root


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    odd = {f"train/bee/{name}": content for name, content in ODD.items()}
    return plant(tmp_path / "set", odd | {name: content for name, (content, _) in BROKEN.items()})


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_prepare_names_every_broken_file(earlybird: Earlybird, damaged: Path, tmp_path: Path) -> None:
    code, out, err = earlybird("prepare", damaged, tmp_path / "out", "--json", "--threads", 2)
    result = json.loads(out)
    assert code == 0
    assert list(result) == ["num_images", "num_classes", "num_quarantined", "bytes", "seconds", "images_per_second"]
    assert (result["num_images"], result["num_classes"], result["num_quarantined"]) == (36, 2, len(BROKEN))
    assert result["bytes"] > 0
    assert result["images_per_second"] > 0
    assert "packing  38 of 38 images  took 0:00:0" in err  # header scans have left out three

    left_out = {image.name: image.reason for image in read_quarantine(tmp_path / "out" / "quarantine.jsonl")}
    assert left_out == {name: reason for name, (_, reason) in BROKEN.items()}

    out = earlybird("prepare", damaged, tmp_path / "out").out
    assert "nothing was left to do" in out
    assert "train 20  val 16  classes 2" in out
    assert "left out 5 (1 not_an_image, 2 truncated, 1 unsupported, 1 zero_bytes)" in out
    assert "encoded again 1" in out
    for name, (_, reason) in BROKEN.items():
        assert f"  {reason:13} {name}" in out
    assert out.splitlines()[-1] == f"Next: earlybird train RECIPE --data {tmp_path / 'out'}"


def test_an_interrupted_prepare_goes_on(
    earlybird: Earlybird, damaged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--shard-size", "4KB", "--json")
    earlybird("prepare", damaged, tmp_path / "whole", *options)
    pack, calls = shards.pack, []

    def interrupted(*arguments: Any, **more: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return pack(*arguments, **more)

    # A process started in a shell's background inherits SIGINT as ignored.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    with monkeypatch.context() as patch:
        patch.setattr(dataloading.prepare, "pack", interrupted)
        code, out, err = earlybird("prepare", damaged, tmp_path / "out", *options)
    signal.signal(signal.SIGINT, inherited)
    assert (code, out) == (130, "")
    assert f"stopped; 2 finished parts are kept in {tmp_path / 'out'}: give the same command again to go on" in err
    assert "half prepared; run prepare again" in earlybird("data", "show", tmp_path / "out").err

    assert earlybird("prepare", damaged, tmp_path / "out", *options).code == 0
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_training_on_an_unprepared_folder_counts_every_bad_image(
    earlybird: Earlybird, damaged: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, out, err = earlybird("train", "demo", "--data", damaged, "--run", run, *SMALL, "--max-steps", 4, "--json")
    assert code == 0, err
    summary = json.loads(out)
    assert (summary["iterations"], summary["num_validation_images"]) == (4, 16)

    rows = read_rows(run / "log.jsonl")
    start, evaluation = (next(row for row in rows if row["event"] == event) for event in ("start", "eval"))
    assert start["left_out"] == {"not_an_image": 1, "unsupported": 1, "zero_bytes": 1}
    assert evaluation["unreadable"] == {"truncated": 1}
    met = {(row["name"], row["reason"]) for row in rows if row["event"] == "bad_image"}
    assert met == {(str(damaged / "train/bee/cut.JPEG"), "truncated")}
    # The set has 21 training images, one of them cut, and 4 iterations load 64: each image at least three times.
    assert sum(row["event"] == "bad_image" for row in rows) in (3, 4)


def test_trace_is_what_the_ranks_load(earlybird: Earlybird, tmp_path: Path) -> None:
    data = plant(tmp_path / "set", {})
    common = ("demo", "--data", data, *SMALL, "--set=optim.update_batch=6")
    config = resolve("demo", ["data.source=auto", f"data.path={data}", "data.heldout=0", "data.image_size=32"])
    index = open_dataset(config.data, config.seed).train
    for epoch, first, num_steps in ((0, 0, 2), (1, 2, 1)):  # 16 images, 12 a batch: iterations 0 and 1 begin in epoch 0
        whole = [sorted(Stream(index, config.data, 0, 6).plan(first + step).ids) for step in range(num_steps)]
        for world_size in (1, 2, 3):
            seen: list[list[int]] = [[] for _ in range(num_steps)]
            for rank in range(world_size):
                place = ("--epoch", epoch, "--steps", f"0:{num_steps}", "--rank", rank, "--world-size", world_size)
                traced = json.loads(earlybird("data", "trace", *common, *place, "--json").out)
                assert (traced["first_iteration"], traced["num_steps"]) == (first, num_steps)
                stream = Stream(index, config.data, 0, 6, rank, world_size)
                for number, step in enumerate(traced["steps"]):
                    assert (step["step"], step["iteration"]) == (number, first + number)
                    plan = stream.plan(first + number)
                    assert [sample["id"] for sample in step["samples"]] == plan.ids.tolist()
                    assert [sample["crop"] for sample in step["samples"]] == plan.geometry.crop.tolist()
                    assert [sample["flip"] for sample in step["samples"]] == plan.geometry.flip.tolist()
                    assert [sample["name"] for sample in step["samples"]] == [index.name(row) for row in plan.ids]
                    seen[number] += plan.ids.tolist()
            assert [sorted(ids) for ids in seen] == whole
    lines = earlybird("data", "trace", *common, "--epoch", 1).out.splitlines()
    assert lines[0].startswith("epoch 1: 1 steps of 12 images from iteration 2; rank 0 of 1, seed 0, data ")
    assert len(lines) == 2 + 12


def test_show_tells_what_a_source_holds(earlybird: Earlybird, damaged: Path) -> None:
    shown = json.loads(earlybird("data", "show", damaged, "--json").out)
    assert (shown["name"], shown["kind"], shown["num_images"], shown["num_classes"]) == ("set", "folder", 38, 2)
    assert shown["classes"] == ["ant", "bee"]
    train = shown["splits"]["train"]
    assert train["images_by_class"] == {"ant": 8, "bee": 13}
    assert train["flags"] == {"not_jpeg": 1, "cmyk": 1, "gray": 1, "progressive": 1}
    assert train["width"] == {"min": 40, "p10": 40, "median": 40, "p90": 40, "max": 300}
    assert shown["quarantined"] == {"not_an_image": 1, "unsupported": 1, "zero_bytes": 1}
    assert {image["name"] for image in shown["quarantined_images"]} == {
        "train/bee/empty.JPEG", "train/bee/film.JPEG", "train/bee/page.JPEG",
    }  # fmt: skip
    out = earlybird("data", "show", damaged).out
    assert "left out 3 (1 not_an_image, 1 unsupported, 1 zero_bytes):" in out
    assert "earlybird prepare SRC DST decodes every image" in out
    recipe = json.loads(earlybird("data", "show", "demo", "--data", damaged, "--set=data.heldout=5", "--json").out)
    assert {split: row["num_images"] for split, row in recipe["splits"].items()} == {
        "train": 16, "heldout": 5, "val": 17,
    }  # fmt: skip


REFUSED = {
    "epoch": (("data", "trace", "demo", "--epoch", 99), "--epoch is 99; demo trains epochs 0 to"),
    "steps": (("data", "trace", "demo", "--data", "SET", *SMALL, "--steps", "0:9"), "epoch 0 has 1 steps; 0:1 is all"),
    "order": (("data", "trace", "demo", "--data", "SET", *SMALL, "--steps", "2:1"), "give A:B with A below B"),
    "rank": (("data", "trace", "demo", "--rank", 2, "--world-size", 2), "--rank is 2 of --world-size 2"),
    "world": (("data", "trace", "demo", "--data", "SET", *SMALL, "--world-size", 3), "need a positive multiple of 3"),
    "nothing": (("data", "show", "nowhere"), "'nowhere' is neither a path nor a recipe"),
    "option": (("data", "show", "SET", "--set", "data.heldout=0"), "--data and --set go with a recipe"),
    "missing": (("prepare", "nowhere", "OUT"), "does not exist"),
    "verify": (("prepare", "SET", "OUT", "--verify", "none"), "choose header or full"),
    "size": (("prepare", "SET", "OUT", "--shard-size", "big"), "--shard-size is 'big'; give a number of bytes"),
    "inside": (("prepare", "SET", "SET/out"), "lies inside the source"),
    "ignored": (("train", "demo", "--data", "SET", "--set=data.source=demo"), "set data.source=auto"),
    "synthetic": (("benchmark", "loader", "demo", "--set=data.source=synthetic"), "there is nothing to load"),
}


@pytest.mark.parametrize(("arguments", "said"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_one_line(earlybird: Earlybird, tmp_path: Path, arguments: tuple[object, ...], said: str) -> None:
    plant(tmp_path / "set", {})
    places = {"SET": tmp_path / "set", "OUT": tmp_path / "out", "SET/out": tmp_path / "set" / "out"}
    code, out, err = earlybird(*(places.get(str(argument), argument) for argument in arguments))
    assert (code, out) == (2, "")
    assert said in err.splitlines()[-1]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "expected"), [("4096", 4096), ("512MB", 512_000_000), ("1.5 GiB", 3 << 29), ("2kb", 2000), ("7B", 7)]
)
def test_sizes(text: str, expected: int) -> None:
    assert num_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "MB", "1TB", "-1", "1.5.2MB", "1e6"])
def test_wrong_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="--shard-size is"):
        num_bytes(text)


def test_the_loader_benchmark_has_a_row_a_side(earlybird: Earlybird, damaged: Path, tmp_path: Path) -> None:
    quick = ("--rounds", 1, "--seconds", 0.02, "--update-batch", 4, "--set=data.num_threads=1", "--device", "cpu")
    command = ("benchmark", "loader", "demo", *quick, "--set=data.heldout=0", "--data")
    source = plant(tmp_path / "good", {})
    result = json.loads(earlybird(*command, source, "--images", 20, "--profile", "--json").out)
    assert {row["loader"] for row in result["rows"]} >= {"earlybird", "dali_reader", "decode_limit", "torchvision"}
    for row in result["rows"]:
        assert row["p20"] <= row["images_per_second"] <= row["p80"]
        assert row["images_per_second_per_core"] > 0
        assert (row["ratio_to_earlybird"] == 1) == (row["loader"] == "earlybird")
    assert result["data"]["images"] == 16
    assert {"hardware", "versions"} <= set(result)
    stages = result["profile"]["stages"]
    assert [row["stage"] for row in stages] == ["plan", "read", "decode", "rest"]
    assert stages[-1]["cpu_microseconds_per_image_so_far"] == pytest.approx(
        sum(row["cpu_microseconds_per_image"] for row in stages)
    )

    code, _, err = earlybird(*command, damaged)  # the loader replaces images, what it is compared with stops
    assert code == 2
    assert "cut.JPEG cannot be read (truncated)" in err.splitlines()[-1]


def test_the_kernel_benchmark_has_a_row_a_side(earlybird: Earlybird, tmp_path: Path) -> None:
    png = tmp_path / "kernels.png"
    command = ("benchmark", "kernels", "--rounds", 1, "--device", "cpu", "--png", png)
    result = json.loads(earlybird(*command, "--json").out)
    assert png.read_bytes().startswith(b"\x89PNG")
    assert result["hardware"]["device"] == "cpu"
    assert "torch" in result["versions"]
    rows = result["rows"]
    assert {(row["operation"], row["side"]) for row in rows} == {
        (operation, side)
        for operation in ("exit_losses", "exit_routing", "lookahead", "norm_relu", "normalize")
        for side in ("separate", "reference")
    }
    assert all(row["median_seconds"] > 0 and row["torch"] and row["device"] for row in rows)
