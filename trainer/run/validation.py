"""An evaluation in the middle of a run, which may be given up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

from dataloading.batch import Batch
from dataloading.datasets.open import ImageSet
from trainer.evaluation.anytime import AnytimeRow, anytime
from trainer.learning.state import TrainState
from trainer.run.build import scoring_loader
from trainer.run.distributed import Ranks


@dataclass(frozen=True)
class Validation:
    """Every exit's scores, and how many images were unreadable by reason; over all ranks."""

    scores: list[AnytimeRow]
    unreadable: Counter[str]


def validate(state: TrainState, images: ImageSet, ranks: Ranks, may_go_on: Callable[[], bool]) -> Validation | None:
    """Score every exit on the validation images, each exactly once over all ranks.

    may_go_on  asked before every batch, equally often on every rank; where it says no, it must say so on all ranks at
               the same batch: None is what comes back then
    """
    loader = scoring_loader(state.config, images.val, ranks)
    unreadable: list[str] = []

    def noted() -> Iterator[Batch]:
        for batch in loader:
            if not may_go_on():
                raise AbandonedError
            unreadable.extend(reason for _, reason in batch.replaced)
            yield batch

    try:
        with closing(loader):
            scores = anytime(state.network.module, noted(), state.network.precision)
    except AbandonedError:
        return None
    return Validation(scores, Counter(ranks.gather(unreadable)))


class AbandonedError(Exception):
    """Leaves the scoring in its middle."""
