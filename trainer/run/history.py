"""What a run has done so far, over all its starts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from trainer.evaluation.anytime import AnytimeRow
from trainer.run.distributed import Ranks
from trainer.telemetry.jsonl import Row, read_rows, still_true
from trainer.telemetry.window import Reading


@dataclass
class History:
    """Follows a run; a start that goes on reads it back from the log.

    images, seconds  that its log steps trained on, and took
    scores           of its newest evaluation, and the iteration after which that was; [] and -1 before the first one
    best             top-1 (%) of the last exit in the checkpoint that is kept as the best one, -1 without one
    """

    images: int = 0
    seconds: float = 0.0
    scores: list[AnytimeRow] = field(default_factory=list)
    evaluated_at: int = -1
    best: float = -1.0

    @classmethod
    def read(cls, log: Path, iteration: int, ranks: Ranks) -> History:
        """`until` by what the first rank finds in its log file: over a network others may not see its end yet, and all
        must act alike."""
        (history,) = ranks.gather([cls.until(read_rows(log), iteration)] if ranks.is_first else [])
        return history

    @classmethod
    def until(cls, rows: Iterable[Row], iteration: int) -> History:
        """What the rows of a log tell of the first `iteration` iterations."""
        history = cls()
        for row in still_true(rows):
            if row.get("iteration", iteration) > iteration:
                continue
            if row["event"] == "train":
                history.images += row["images"]
                history.seconds += row["seconds"]
            elif row["event"] == "eval":
                history.evaluated(row["exits"], row["iteration"])
            elif row["event"] == "best checkpoint":
                of_the_last = history.evaluated_at == row["iteration"]
                history.best = history.scores[-1]["top1"] if of_the_last else row["top1"]  # the row's is rounded
        return history

    def trained(self, reading: Reading) -> None:
        """A log step."""
        self.images += reading.images
        self.seconds += reading.seconds

    def evaluated(self, scores: list[AnytimeRow], iteration: int) -> None:
        """An evaluation after `iteration` iterations."""
        self.scores, self.evaluated_at = scores, iteration

    @property
    def images_per_second(self) -> float:
        return self.images / self.seconds if self.seconds else 0.0
