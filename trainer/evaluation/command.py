"""Scoring a finished or running run from its folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from dataloading.datasets.open import ImageSet, open_dataset
from dataloading.index import Index
from trainer.config import Config
from trainer.evaluation.anytime import anytime_rows
from trainer.evaluation.budgeted import BudgetedRow, budgeted_batch
from trainer.evaluation.exits import ExitScores, score_exits
from trainer.evaluation.per_class import by_shots, per_class
from trainer.learning.precision import resolve_precision
from trainer.models.cost import exit_costs
from trainer.models.multi_exit import MultiExitNet
from trainer.run.build import build_net, scoring_loader
from trainer.run.checkpoint import Checkpoint
from trainer.run.distributed import Ranks, process_group
from trainer.run.folder import RunFolder, private_files
from trainer.run.resume import latest_for_all
from trainer.run.snapshot import load_model


def evaluate_run(run: Path, split: str, data: str, device: str) -> dict[str, Any]:
    """Anytime, budgeted batch and class-by-class figures of a run's newest checkpoint (METHOD: evaluation).

    Thresholds come from the held-out split. With split "heldout" they are scored on that split itself, which flatters.
    A run without held-out images (data.heldout=0) has no budgeted figures. ValueError for an unknown split, a folder
    without a checkpoint, or other images than the run's.
    """
    if split not in ("val", "heldout"):
        raise ValueError(f"--split is {split!r}; it must be val or heldout")
    with opened(run, data, device) as (config, images, net, ranks, checkpoint):
        if not len(images.heldout) and split == "heldout":
            raise ValueError(f"{run} holds no images out of training (data.heldout is 0); use --split val")
        scored_on = images.val if split == "val" else images.heldout
        scored = score_split(net, config, scored_on, ranks)
        heldout = scored if split == "heldout" else None
        if split == "val" and len(images.heldout):
            heldout = score_split(net, config, images.heldout, ranks)
    costs = exit_costs(config.model, len(images.classes), config.data.image_size)
    mul_adds = [float(cost.mul_adds) for cost in costs]
    assert scored.samples is not None
    labels = scored_on.labels[scored.samples.ids.numpy()]
    classes = per_class(scored.samples.correct, labels, images.train.labels, images.classes)
    return {
        "run": str(run),
        "recipe": config.recipe,
        "iteration": checkpoint.iteration,
        "split": split,
        "num_heldout": heldout.num_images if heldout is not None else 0,
        "mul_adds": mul_adds,
        "anytime": anytime_rows(scored),
        "budgeted": _budgeted(heldout, scored, mul_adds),
        "per_class": classes,
        "shots": by_shots(classes),
    }


@contextmanager
def opened(run: Path, data: str, device: str) -> Iterator[tuple[Config, ImageSet, MultiExitNet, Ranks, Checkpoint]]:
    """A run's configuration, images, and net with the newest checkpoint's weights, on every rank.

    data  where its images lie now, "" where they were
    Raises ValueError for a folder without a checkpoint, or other images than the run's.
    """
    folder = RunFolder(run)
    config = folder.read_config()
    if data:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, path=data, source="auto"))
    with private_files(), process_group(device) as ranks:
        checkpoint = latest_for_all(run, ranks)  # a run that goes on may write one between two ranks' looks
        if checkpoint is None:
            raise ValueError(f"{run} has no checkpoint yet; train it first")
        images = open_dataset(config.data, config.seed)
        ranks.meet("opening the images")
        theirs = checkpoint.meta.get("data_fingerprint")
        if theirs is not None and theirs != images.fingerprint:  # None: imported without its images
            raise ValueError(
                f"{run} was trained on other images (fingerprint {str(theirs)[:12]}, these have "
                f"{images.fingerprint[:12]}): their held-out images may have trained it; give --data the run's own"
            )
        net = build_net(config, len(images.classes), resolve_precision(config.precision, ranks.device))
        load_model(net, checkpoint.tensors)
        yield config, images, net, ranks, checkpoint


def _budgeted(heldout: ExitScores | None, scored: ExitScores, mul_adds: list[float]) -> list[BudgetedRow]:
    """The 39 points; none where no image was held out to set thresholds."""
    if heldout is None:
        return []
    assert heldout.samples is not None
    assert scored.samples is not None
    return budgeted_batch(
        heldout.samples.confidences,
        heldout.samples.correct,
        scored.samples.confidences,
        scored.samples.correct,
        mul_adds,
    )


def score_split(net: MultiExitNet, config: Config, index: Index, ranks: Ranks) -> ExitScores:
    """Every exit on every image of a split, image by image too; collective over ranks."""
    with closing(scoring_loader(config, index, ranks)) as loader:
        return score_exits(net, loader, resolve_precision(config.precision, ranks.device), per_sample=True)
