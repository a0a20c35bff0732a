"""WebDataset shards are read in place, in either layout; samples without a label are named."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataloading import tar
from dataloading.config import DataConfig
from dataloading.datasets.open import ImageSet, open_dataset
from dataloading.scan import Source


@pytest.fixture
def images(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted((folder / "train").rglob("[!.]*.[jJ]*"))]


def shard(path: Path, samples: list[tuple[str, bytes, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    members = [
        tar.member(f"{key}.cls", label.encode()) * bool(label)
        + tar.member(f"{key}.jpg", data)
        + tar.member(f"{key}.json", b"{}")
        for key, data, label in samples
    ]
    path.write_bytes(b"".join(members) + tar.END)


def read(path: Path) -> ImageSet:
    return open_dataset(DataConfig(path=str(path), heldout=0), 0)


@pytest.mark.parametrize("layout", ["{}-{:06d}.tar", "imagenet-{}-{:04d}.tar", "{}/{:05d}.tar"])
def test_samples_in_the_shards_order(tmp_path: Path, images: list[bytes], layout: str) -> None:
    root = tmp_path / "wds"
    for number in range(3):
        samples = [(f"s/{number}{i}", images[3 * number + i], f"{i}\n") for i in (2, 0, 1)]
        shard(root / layout.format("train", number), samples)
    shard(root / layout.format("validation", 0), [("a", images[9], "1"), ("b", images[10], "")])
    (root / "classes.txt").write_text("ant\nbee\ncow\n")
    found = read(root)
    assert found.train.labels.tolist() == [2, 0, 1] * 3
    assert found.classes == ("ant", "bee", "cow")
    with Source(found.train) as source:
        assert [source.read(row) for row in range(9)] == [
            images[3 * number + i] for number in range(3) for i in (2, 0, 1)
        ]
    assert len(found.val) == 1
    assert [(image.name, image.split, image.reason) for image in found.quarantined] == [("b.jpg", "val", "unreadable")]
    (root / "classes.txt").unlink()
    assert read(root).classes == ("0", "1", "2")


def test_missing_validation_and_labels_out_of_range_are_refused(tmp_path: Path, images: list[bytes]) -> None:
    root = tmp_path / "wds"
    shard(root / "train-0.tar", [("a", images[0], "0"), ("b", images[1], "1")])
    with pytest.raises(ValueError, match="training shards but no validation split; add val-"):
        read(root)
    shard(root / "val-0.tar", [("a", images[2], "2")])
    with pytest.raises(ValueError, match=r"a.jpg has label 2 of 2 classes"):
        read(root)
