"""The published accuracies as tables of rows, and which row a run may stand beside."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from trainer.config import Config, resolve
from trainer.recipes.catalogue import classes_of
from trainer.reporting.provenance import TrainedOn, differing
from trainer.reporting.published import (
    ACCURACY,
    BASELINE,
    LABEL_SMOOTHING,
    WEIGHT_NET_ABLATION,
    PublishedAccuracy,
)
from trainer.settings import nearest, setting_names

COST = "cost"


@dataclass(frozen=True)
class TableRow:
    """One row of an accuracy table: what trains it, and what was published of it."""

    name: str
    recipe: str
    settings: tuple[str, ...]
    published: PublishedAccuracy

    @property
    def config(self) -> Config:
        return resolve(self.recipe, list(self.settings))

    @property
    def label(self) -> str:
        """For a reader who sees no table."""
        unweighted = "" if self.config.sample_weights.enabled else ", unweighted"
        smoothed = "label smoothing, " if self.config.optim.label_smoothing else ""
        return f"published{unweighted} ({smoothed}{self.published.epochs} epochs)"


def _tables() -> dict[str, tuple[TableRow, ...]]:
    imagenet = [TableRow(name, name, (), found) for name, found in ACCURACY.items() if name.startswith("imagenet")]
    smoothed = [
        TableRow(name, name, ("optim.label_smoothing=0.1", f"run.epochs={found.epochs}"), found)
        for name, found in LABEL_SMOOTHING.items()
    ]
    cifar = "cifar100-msdnet-5exits"
    ablation = [TableRow("baseline", cifar + BASELINE, (), ACCURACY[cifar + BASELINE])]
    ablation += [
        TableRow(f"{depth}x{width}", cifar, (f"weight_net.depth={depth}", f"weight_net.width={width}"), found)
        for (depth, width), found in WEIGHT_NET_ABLATION.items()
    ]
    return {
        "imagenet": tuple(imagenet),
        "imagenet-label-smoothing": tuple(smoothed),
        "weight-net": tuple(ablation),
    }


def table_names() -> list[str]:
    return [COST, *_tables()]


def accuracy_rows(name: str) -> tuple[TableRow, ...]:
    """The rows of an accuracy table; ValueError with the nearest name where there is none."""
    found = _tables()
    if name not in found:
        raise ValueError(f"unknown table {name!r}{nearest(name, table_names())}; there are {', '.join(table_names())}")
    return found[name]


def row_of(config: Config) -> TableRow | None:
    """The row of any table that a run is meant by; None where nothing was published of it."""
    return next((row for rows in _tables().values() for row in rows if is_of(row, config)), None)


def twin_of(config: Config) -> TableRow | None:
    """The unweighted row beside a weighted run's own."""
    if not config.sample_weights.enabled:
        return None
    return row_of(replace(config, sample_weights=replace(config.sample_weights, enabled=False)))


def is_of(row: TableRow, config: Config) -> bool:
    """Whether a run is meant by the row: its recipe, and what the tables tell rows apart by."""
    ours, theirs = setting_names(config), setting_names(row.config)
    told_apart = ["optim.label_smoothing", "sample_weights.enabled"]
    told_apart += ["weight_net.depth", "weight_net.width"] if config.sample_weights.enabled else []
    return config.recipe.removesuffix(BASELINE) == row.recipe.removesuffix(BASELINE) and all(
        ours[name] == theirs[name] for name in told_apart
    )


def fits(row: TableRow, config: Config, trained_on: TrainedOn) -> bool:
    """Whether a difference means anything: the same net, which tells as many classes apart."""
    net, theirs = (replace(one.model, num_classes=0) for one in (config, row.config))
    return net == theirs and trained_on.num_classes == classes_of(row.config)


def otherwise(row: TableRow, config: Config, trained_on: TrainedOn, split: str) -> dict[str, list[Any]]:
    """{what: [ours, as published]} of all in which a run, scored on `split`, is not what the row publishes."""
    told = ("recipe", "seed", "data.source", "model.num_classes")
    found = {name: list(pair) for name, pair in differing(config, row.config).items() if name not in told}
    for name, ours, theirs in (
        ("classes", trained_on.num_classes or "unknown", classes_of(row.config)),
        ("training images", trained_on.num_images or "unknown", row.published.num_images),
        ("scored on", split, "val"),
    ):
        if ours != theirs:
            found[name] = [ours, theirs]
    return found


def in_words(differences: dict[str, list[Any]]) -> str:
    """run.epochs 1 for 300, ..."""
    return ", ".join(f"{name} {ours} for {theirs}" for name, (ours, theirs) in differences.items())
