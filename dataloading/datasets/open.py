"""From settings to the three splits of a run: training, held out, validation."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataloading.cache import cache_folder, locked, once
from dataloading.config import DataConfig
from dataloading.datasets.archive import read_archive
from dataloading.datasets.cifar import is_cifar, read_cifar
from dataloading.datasets.demo import demo_archive
from dataloading.datasets.image_folder import read_image_folder
from dataloading.datasets.imagenet import is_imagenet, read_imagenet
from dataloading.datasets.long_tail import long_tail_rows, mu_of
from dataloading.datasets.prepared import is_prepared, read_prepared
from dataloading.datasets.splits import Splits
from dataloading.datasets.webdataset import is_webdataset, read_webdataset
from dataloading.heldout import split_rows
from dataloading.index import PIXELS, Index
from dataloading.quarantine import Quarantined
from dataloading.scan import ProgressCallback

_KINDS: tuple[tuple[str, Callable[[Path], bool], Callable[[Path], Splits]], ...] = (
    ("prepared", is_prepared, read_prepared),
    ("imagenet", is_imagenet, read_imagenet),
    ("cifar", is_cifar, read_cifar),
    ("webdataset", is_webdataset, read_webdataset),
    ("folder", Path.is_dir, read_image_folder),
    ("archive", Path.exists, read_archive),
)
_FORMAT = 1  # raise when what is cached changes its meaning


@dataclass(frozen=True)
class ImageSet:
    """The splits of one run.

    train        rows that train: the source's training images less the held-out ones, after the long-tail cut
    heldout      rows drawn from the training images before that cut; empty for data.heldout = 0
    val          the source's validation images, never touched
    fingerprint  sha-256 over the three: equal wherever and however the same images are stored
    quarantined  images of the source that could not be read, with the reason
    """

    name: str
    train: Index
    heldout: Index
    val: Index
    classes: tuple[str, ...]
    fingerprint: str
    quarantined: tuple[Quarantined, ...] = ()


def open_dataset(config: DataConfig, seed: int, *, progress: ProgressCallback | None = None) -> ImageSet:
    """The set that `config` names. The first start reads every image's header and caches the index; later starts,
    and the other processes of a node (they wait for the first), map it from there.

    Raises ValueError, in one line with the remedy, for a missing, empty or inconsistent set.
    """
    if config.source == "synthetic":
        return _synthetic(config, seed)
    if config.source == "auto" and not config.path:
        raise ValueError(
            "data.path is empty; give --data PATH, a folder, archive or prepared set, or --set data.source=demo"
        )
    path = demo_archive() if config.source == "demo" else Path(config.path).expanduser().absolute()
    splits = open_splits(path, num_threads=config.num_threads, progress=progress)
    train, heldout = _divide(splits.train, config, seed)
    name = "demo" if config.source == "demo" else splits.name
    return ImageSet(
        name, train, heldout, splits.val, train.classes, _fingerprint(train, heldout, splits.val), splits.quarantined
    )


def open_splits(path: Path, *, num_threads: int = 0, progress: ProgressCallback | None = None) -> Splits:
    """The source's own splits with every header read, from the cache where the source has not changed since.

    An image that is overwritten in place, keeping its name, is not noticed: a folder's date shows only names.
    """
    if not path.exists():
        raise ValueError(f"data.path {path} does not exist; give a folder, archive or prepared set")
    if is_prepared(path):
        return read_prepared(path)
    home = _home(path)
    found = _cached(home)
    if found is None:
        with locked(home):
            found = _cached(home)
            if found is None:
                shutil.rmtree(home, ignore_errors=True)  # the source has changed
                read = read_source(path).scanned(num_threads=num_threads, progress=progress).check(str(path))
                key = hashlib.sha256(json.dumps([_FORMAT, read.watched]).encode()).hexdigest()[:32]
                found = Splits.open(once(home / key, lambda folder: read.save(folder, home / key)))
    return found


def is_indexed(path: Path) -> bool:
    """Whether a start finds every header of `path`, which exists, read already."""
    return is_prepared(path) or _cached(_home(path)) is not None


def read_source(path: Path) -> Splits:
    """Lists what is at `path`, whatever kind it is, without reading images."""
    return _kind(path)[1](path)


def source_kind(path: Path) -> str:
    """How `path` is read: prepared | imagenet | cifar | webdataset | folder | archive. It must exist."""
    return _kind(path)[0]


def _kind(path: Path) -> tuple[str, Callable[[Path], Splits]]:
    return next((name, read) for name, is_kind, read in _KINDS if is_kind(path))


def _home(path: Path) -> Path:
    """Of all indexes of a source in the cache: one, until the source changes."""
    return cache_folder() / "index" / hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]


def _cached(home: Path) -> Splits | None:
    for folder in home.glob("[!.]*"):
        try:
            splits = Splits.open(folder)
        except ValueError:
            continue  # of another version or damaged: it is made again
        if splits.unchanged():
            return splits
    return None


def _rows(source: Index, config: DataConfig, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(training rows, held-out rows). The long-tail cut comes second: the held-out number does not depend on it."""
    mu = config.long_tail_mu
    if config.imbalance_factor:
        mu = mu_of(config.imbalance_factor, source.num_classes)
    train_rows, heldout_rows = split_rows(source, config.heldout, seed)
    if mu:
        train_rows = train_rows[long_tail_rows(source.labels[train_rows], source.num_classes, mu, seed)]
    return train_rows, heldout_rows


def _divide(source: Index, config: DataConfig, seed: int) -> tuple[Index, Index]:
    """(training rows, held-out rows) as mapped indexes in the cache, so that a node's ranks share them."""
    train_rows, heldout_rows = _rows(source, config, seed)
    digest = hashlib.sha256(json.dumps([_FORMAT, source.fingerprint, source.containers, source.root]).encode())
    for column in (source.offsets, train_rows, heldout_rows):
        digest.update(np.ascontiguousarray(column).data)
    folder = cache_folder() / "splits" / digest.hexdigest()[:32]

    def build(temporary: Path) -> None:
        for name, rows in (("train", train_rows), ("heldout", heldout_rows)):
            (temporary / name).mkdir()
            source.subset(rows).write_columns(temporary / name, folder / name)

    once(folder, build)
    return Index.open(folder / "train"), Index.open(folder / "heldout")


def _synthetic(config: DataConfig, seed: int) -> ImageSet:
    """An index without images: what a loader of random pixels needs. Labels go round the classes."""

    def index(split: str, num_images: int) -> Index:
        side = np.full(num_images, config.image_size)
        return Index.build(
            [f"class{label}" for label in range(config.synthetic_classes)],
            np.arange(num_images) % config.synthetic_classes,
            [f"{split}/{row:08d}" for row in range(num_images)],
            sizes=3 * side * side,
            heights=side,
            widths=side,
            flags=np.full(num_images, PIXELS),
        )

    source = index("train", config.synthetic_images)
    train, heldout = (source.subset(rows) for rows in _rows(source, config, seed))
    val = index("val", max(config.synthetic_classes, config.synthetic_images // 10))
    return ImageSet("synthetic", train, heldout, val, train.classes, _fingerprint(train, heldout, val))


def _fingerprint(*indexes: Index) -> str:
    return hashlib.sha256("".join(index.fingerprint for index in indexes).encode()).hexdigest()
