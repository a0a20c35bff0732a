"""The data: whether it is there, indexed and readable from here, and how fast it comes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import torch

from dataloading.datasets.contents import reasons
from dataloading.datasets.open import ImageSet, is_indexed, open_dataset, read_source
from dataloading.loader import num_threads, train_loader
from trainer.config import Config
from trainer.doctor.finding import Finding

_READ_NOW = 50_000  # images whose headers are read for the examination; more take too long
_SAMPLE_SECONDS, _SAMPLE_BATCH = 1.0, 64


def data(config: Config, device: torch.device, found: list[ImageSet]) -> Iterator[Finding]:
    """found  receives the set where it could be opened, for whoever needs it next"""
    if config.data.source == "auto" and not config.data.path:
        remedy = "name it with --data PATH, or as data.path"
        yield Finding("data", "warn", f"{config.recipe} has no images of its own, and none were given", remedy)
        return
    indexed, path = True, Path(config.data.path).expanduser()
    if config.data.source == "auto" and path.exists():
        indexed = is_indexed(path)
        listed = 0 if indexed else len(read_source(path).train)
        if listed > _READ_NOW:
            remedy = f"earlybird data show {path} (or prepare, which packs them too) does it before the first start"
            said = f"{path}: {listed:,} training images without an index: the first start reads every header"
            yield Finding("index", "warn", said, remedy)
            return
    images = open_dataset(config.data, config.seed)
    found.append(images)
    said = (
        f"{images.name}: {len(images.train):,} training images of {len(images.classes)} classes, "
        f"{len(images.heldout):,} held out, {len(images.val):,} for validation"
    )
    yield Finding("data", "pass", said, values={"fingerprint": images.fingerprint, "train": len(images.train)})
    yield Finding("index", "pass", "there" if indexed else "made now; the next start maps it")
    if images.quarantined:
        named = ", ".join(f"{number} {reason}" for reason, number in reasons(images.quarantined).items())
        first = images.quarantined[0].name
        remedy = "they are left out; earlybird data show names all: mend or remove them"
        yield Finding("data", "warn", f"{len(images.quarantined)} unreadable images ({named}), first {first}", remedy)
    yield throughput(config, images, device)


def throughput(config: Config, images: ImageSet, device: torch.device, seconds: float = _SAMPLE_SECONDS) -> Finding:
    """Training batches for `seconds`, read, decoded, cut and brought to the device, without a net."""
    half = min(_SAMPLE_BATCH, config.optim.update_batch, len(images.train) // 2)
    loader = train_loader(config.data, images.train, seed=config.seed, update_batch=half, device=device)
    replaced = 0
    with closing(loader), closing(loader.batches(0, 1 << 40)) as batches:  # type: ignore[type-var]
        next(batches)  # starts threads, builds pipelines
        num_images, began = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - began) < seconds:
            batch = next(batches)
            num_images += len(batch)
            replaced += len(batch.replaced)
    rate = num_images / elapsed
    said = f"{rate:,.0f} images/s with {num_threads(config.data)} threads"
    values = {"images_per_second": rate, "threads": num_threads(config.data)}
    if replaced:
        remedy = "earlybird data show PATH names them; from a network disk, look for its errors (dmesg)"
        return Finding("throughput", "warn", f"{said}; {replaced} of {num_images} could not be read", remedy, values)
    return Finding("throughput", "pass", said, values=values)
