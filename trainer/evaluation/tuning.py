"""The choice of the exit ratio q of the meta loss: by the accuracy over cost on images held out of training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.evaluation.budgeted import RATIOS, BudgetedRow, budgeted_batch
from trainer.evaluation.command import opened, score_split
from trainer.evaluation.cost_curve import common_costs, top1_at
from trainer.evaluation.exits import Samples
from trainer.models.cost import exit_costs
from trainer.run.folder import RunFolder, write_json


@dataclass(frozen=True)
class Heldout:
    """A run on the images that it holds out of training.

    iteration   of the net that was scored
    ratio       q of its meta loss
    curve       39 points (expected multiply-adds, top-1 in percent), thresholds and scores from different images
    anytime     [K] top-1, percent
    thresholds  39 rows of METHOD's budgeted batch, from all held-out images: what a server takes
    """

    run: Path
    iteration: int
    ratio: float
    num_images: int
    mul_adds: tuple[float, ...]
    curve: tuple[tuple[float, float], ...]
    anytime: tuple[float, ...]
    thresholds: tuple[BudgetedRow, ...]


@dataclass(frozen=True)
class Candidate:
    """One ratio: `scores` of its runs (mean top-1 over costs, percent), and their curve over `costs`, averaged."""

    ratio: float
    runs: tuple[Path, ...]
    scores: tuple[float, ...]
    anytime: tuple[float, ...]
    costs: tuple[float, ...]
    curve: tuple[float, ...]

    @property
    def score(self) -> float:
        return float(np.mean(self.scores))

    @property
    def spread(self) -> float | None:
        """Standard deviation over runs; None of a single one."""
        return float(np.std(self.scores, ddof=1)) if len(self.scores) > 1 else None


def on_heldout(run: Path, data: str, device: str) -> Heldout:
    """Score a trained run on its held-out images. ValueError where it holds none out, or as `opened` raises it."""
    with opened(run, data, device) as (config, images, net, ranks, checkpoint):
        if len(images.heldout) < 2:
            raise ValueError(f"{run} holds {len(images.heldout)} images out of training; set data.heldout higher")
        samples = score_split(net, config, images.heldout, ranks).samples
        num_classes = len(images.classes)
    assert samples is not None
    costs = tuple(float(cost.mul_adds) for cost in exit_costs(config.model, num_classes, config.data.image_size))
    hits = samples.correct.double().mean(dim=0)
    return Heldout(
        run=run,
        iteration=checkpoint.iteration,
        ratio=config.meta.ratio,
        num_images=len(samples.ids),
        mul_adds=costs,
        curve=crossed_curve(samples, costs),
        anytime=tuple(100 * float(hit) for hit in hits),
        thresholds=tuple(
            budgeted_batch(samples.confidences, samples.correct, samples.confidences, samples.correct, costs)
        ),
    )


def crossed_curve(samples: Samples, mul_adds: Sequence[float]) -> tuple[tuple[float, float], ...]:
    """39 points (expected multiply-adds, top-1 %): thresholds from every second image score the others, and the
    reverse; means of both. Thresholds scored on their own images would flatter nets that fit few images well."""
    place = torch.arange(len(samples.ids))
    folds = [place % 2 == 0, place % 2 == 1]
    rows = [
        budgeted_batch(
            samples.confidences[theirs],
            samples.correct[theirs],
            samples.confidences[ours],
            samples.correct[ours],
            mul_adds,
            RATIOS,
        )
        for theirs, ours in (folds, folds[::-1])
    ]
    pairs = zip(*rows, strict=True)
    return tuple(((a["mul_adds"] + b["mul_adds"]) / 2, (a["top1"] + b["top1"]) / 2) for a, b in pairs)


def candidates(runs: Sequence[Heldout]) -> list[Candidate]:
    """The ratios in ascending order; scores are over the range of costs that every run's curve covers.

    Raises ValueError where the runs are of nets with other costs, or no cost is covered by every curve.
    """
    if len({run.mul_adds for run in runs}) != 1:
        raise ValueError("the runs are of different nets, whose costs differ; compare runs of one recipe")
    costs = common_costs([run.curve for run in runs])
    if not len(costs):
        raise ValueError("the runs' curves share no cost, so none is better over all costs; train them longer")
    found = []
    for ratio in sorted({run.ratio for run in runs}):
        same = [run for run in runs if run.ratio == ratio]
        curves = np.array([top1_at(run.curve, costs) for run in same])
        found.append(
            Candidate(
                ratio=ratio,
                runs=tuple(run.run for run in same),
                scores=tuple(float(score) for score in curves.mean(axis=1)),
                anytime=tuple(float(top1) for top1 in np.mean([run.anytime for run in same], axis=0)),
                costs=tuple(float(cost) for cost in costs),
                curve=tuple(float(top1) for top1 in curves.mean(axis=0)),
            )
        )
    return found


def best(found: Sequence[Candidate]) -> Candidate:
    """The highest score; of equal ones the lower ratio, which trains the cheap exits more."""
    return max(found, key=lambda candidate: (candidate.score, -candidate.ratio))


def keep(runs: Sequence[Heldout], found: Sequence[Candidate], folder: Path) -> dict[str, Any]:
    """What was chosen, into FOLDER/tune.json; thresholds.json with the budgets of each into its run; the former."""
    chosen = best(found)
    for run in runs:
        RunFolder(run.run).write_thresholds(_budgets(run, chosen))
    result = {
        "chosen": chosen.ratio,
        "num_heldout": runs[0].num_images,
        "rows": [_row(candidate) for candidate in found],
        "curve_mul_adds": list(chosen.costs),
    }
    write_json(folder / "tune.json", result)
    return result


def _budgets(run: Heldout, chosen: Candidate) -> dict[str, Any]:
    names = ("ratio", "thresholds", "heldout_top1", "mul_adds", "exit_shares")
    return {
        "iteration": run.iteration,
        "meta_ratio": run.ratio,
        "chosen_meta_ratio": chosen.ratio,
        "num_heldout": run.num_images,
        "budgets": [{name: dict(row)[name] for name in names} for row in run.thresholds],
    }


def _row(candidate: Candidate) -> dict[str, Any]:
    return {
        "ratio": candidate.ratio,
        "score": candidate.score,
        "spread": candidate.spread,
        "scores": list(candidate.scores),
        "anytime": list(candidate.anytime),
        "curve": list(candidate.curve),
        "runs": [str(run) for run in candidate.runs],
    }
