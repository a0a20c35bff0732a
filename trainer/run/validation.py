"""Evaluations in the middle of a run, which may be given up."""

from __future__ import annotations

import time
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
from trainer.run.health import Signs
from trainer.run.signals import Requests
from trainer.run.watchdog import Watchdog
from trainer.telemetry.telemetry import Telemetry


class Validator:
    """Scores the state of a run, unless a stop is asked for, and tells of it."""

    def __init__(
        self,
        images: ImageSet,
        ranks: Ranks,
        telemetry: Telemetry,
        requests: Requests,
        watchdog: Watchdog,
        signs: Signs,
    ) -> None:
        self._images, self._ranks, self._telemetry = images, ranks, telemetry
        self._requests, self._watchdog, self._signs = requests, watchdog, signs

    def evaluate(self, state: TrainState) -> list[AnytimeRow] | None:
        """Every exit's scores on the validation images, each exactly once over all ranks.

        None where it was given up, on all ranks after the same batch, since a stop was asked for.
        """
        began, iteration = time.perf_counter(), state.progress.iteration
        found = validate(state, self._images, self._ranks, self._may_go_on)
        if found is None:
            self._telemetry.event("evaluation given up", iteration=iteration)
            return None
        self._telemetry.evaluation(
            found.scores,
            split="val",
            iteration=iteration,
            seconds=time.perf_counter() - began,
            unreadable=found.unreadable,
        )
        for name, fields in self._signs.evaluated(found.scores):
            self._telemetry.event(name, iteration=iteration, **fields)
        return found.scores

    def _may_go_on(self) -> bool:
        self._watchdog.beat()
        self._telemetry.beat()
        stop, save = self._requests.poll()
        if save and not stop:
            self._requests.ask_to_save()  # after the next iteration
        return not stop


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
