"""The index: what is saved is what is opened, mapped read-only; its fingerprint names images and order."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataloading.index import _COLUMNS, PIXELS, Index

names = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=30)


def make(row_names: list[str], **changes: object) -> Index:
    rows = np.arange(len(row_names))
    columns = {
        "labels": rows % 3,
        "heights": rows + 5,
        "widths": rows + 7,
        "sizes": rows * 11,
        "offsets": rows * 512,
        "containers": ["/data/a.tar", "/data/b.tar"],
        "container": rows % 2,
        "flags": rows % 2 * PIXELS,
    }
    return Index.build(["x", "y", "z"], names=row_names, **{**columns, **changes})  # type: ignore[arg-type]


def assert_equal(a: Index, b: Index) -> None:
    for column in _COLUMNS:
        np.testing.assert_array_equal(getattr(a, column), getattr(b, column))
        assert getattr(a, column).dtype == getattr(b, column).dtype == _COLUMNS[column]
    assert (a.classes, a.containers, a.root) == (b.classes, b.containers, b.root)


@given(names)
@settings(max_examples=20, deadline=None)
def test_opens_what_was_saved(tmp_path_factory: pytest.TempPathFactory, row_names: list[str]) -> None:
    folder = tmp_path_factory.mktemp("index") / "train"
    saved = make(row_names)
    saved.save(folder)
    opened = Index.open(folder)
    assert_equal(saved, opened)
    assert [opened.name(row) for row in range(len(opened))] == row_names
    assert opened.fingerprint == saved.fingerprint


@given(names.filter(len), st.data())
@settings(max_examples=50, deadline=None)
def test_subset_takes_rows_in_the_given_order(row_names: list[str], data: st.DataObject) -> None:
    index = make(row_names)
    rows = data.draw(st.lists(st.integers(0, len(index) - 1), max_size=40))
    part = index.subset(np.array(rows, dtype=np.int64))
    assert_equal(part, make([row_names[row] for row in rows], **{
        column: getattr(index, column)[rows] for column in _COLUMNS if not column.startswith("name")
    }))  # fmt: skip


def test_columns_are_mapped_and_cannot_be_written(tmp_path: Path) -> None:
    make(["a", "b"]).save(tmp_path / "index")
    opened = Index.open(tmp_path / "index")
    with pytest.raises(ValueError, match="read-only"):
        opened.labels[0] = 1
    assert isinstance(opened.labels.base, np.memmap)


def test_a_million_images_stay_small(tmp_path: Path) -> None:
    """41 bytes an image and its name: ImageNet's 1,281,167 take under 250 MB."""
    rows = [f"train/n01440764/n01440764_{row:05d}.JPEG" for row in range(10_000)]
    make(rows).save(tmp_path / "index")
    total = sum(file.stat().st_size for file in (tmp_path / "index").iterdir())
    assert total / 10_000 * 1_281_167 < 250e6


@pytest.mark.parametrize("column", ["labels", "heights", "widths", "sizes", "flags"])
def test_fingerprint_sees_every_change_but_not_the_place(column: str) -> None:
    row_names = ["a", "b", "c", "d"]
    index = make(row_names)
    changed = getattr(index, column).copy()
    changed[2] += 1
    assert make(row_names, **{column: changed}).fingerprint != index.fingerprint
    assert make(["a", "b", "d", "c"]).fingerprint != index.fingerprint
    assert make(["ab", "", "c", "d"]).fingerprint != index.fingerprint
    assert index.subset(np.array([1, 0, 2, 3])).fingerprint != index.fingerprint
    moved = make(row_names, containers=["/elsewhere/a.tar", "/elsewhere/b.tar"], offsets=np.arange(4))
    assert moved.fingerprint == index.fingerprint


def test_files_of_their_own_are_named_from_the_root() -> None:
    index = Index.build(
        ["x"], [0, 0], ["train/x/1.jpg", "m.jpg"], container=[-1, 0], containers=["/a.tar"], root="/set"
    )
    assert [index.name(0), index.name(1)] == ["/set/train/x/1.jpg", "m.jpg"]


def test_containers_move_with_the_set(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    index = make(["a", "b"], containers=[str(tmp_path / "set/train.tar"), "/other/b.tar"])
    index.save(tmp_path / "set" / "index" / "train", movable=tmp_path / "set")
    shutil.move(tmp_path / "set", tmp_path / "moved")
    assert Index.open(tmp_path / "moved/index/train").containers == (str(tmp_path / "moved/train.tar"), "/other/b.tar")


@pytest.mark.parametrize("damage", ["missing", "cut", "rows", "format"])
def test_a_damaged_index_is_refused(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "index"
    make(["a", "b", "c"]).save(folder)
    if damage == "missing":
        (folder / "labels.npy").unlink()
    elif damage == "cut":
        (folder / "sizes.npy").write_bytes((folder / "sizes.npy").read_bytes()[:-4])
    elif damage == "rows":
        np.save(folder / "flags.npy", np.zeros(2, np.uint8))
    else:
        manifest = json.loads((folder / "manifest.json").read_text())
        (folder / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(ValueError, match=f"{folder}.*prepare the set again"):
        Index.open(folder)


def test_never_overwrites_and_leaves_nothing_behind(tmp_path: Path) -> None:
    make(["a"]).save(tmp_path / "index")
    with pytest.raises(FileExistsError, match="never overwritten"):
        make(["b"]).save(tmp_path / "index")
    with pytest.raises(ValueError, match=r"labels has shape \[?\(1,\)"):
        Index.build(["x"], [0], ["a", "b"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["index"]
