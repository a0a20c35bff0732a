"""Which images every iteration trained on, rank by rank: what proves that none was lost and none came twice."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from trainer.telemetry.jsonl import JsonLog, read_rows


class Ledger:
    """Appends a row an iteration to `ids/rank-R.jsonl` of the run folder.

    began  Unix time, the same on all ranks, of this start or of going back: where an iteration is trained again, the
           newest counts
    """

    def __init__(self, run_folder: Path, rank: int, began: float) -> None:
        self._log, self.began = JsonLog(run_folder / "ids" / f"rank-{rank}.jsonl"), began

    def write(self, iteration: int, ids: np.ndarray) -> None:
        """Images `ids` were this rank's in `iteration`, counted from 0."""
        self._log.write("ids", iteration=iteration, began=self.began, ids=ids.tolist())

    def close(self) -> None:
        self._log.close()


def read_ledger(run_folder: Path) -> dict[int, np.ndarray]:
    """The images of every iteration over all ranks, as the run in the end had them. ValueError where it kept none."""
    newest: dict[int, tuple[float, list[int]]] = {}
    for path in sorted((run_folder / "ids").glob("rank-*.jsonl")):
        for row in read_rows(path):
            began, ids = newest.get(row["iteration"], (0.0, []))
            if row["began"] > began:
                newest[row["iteration"]] = row["began"], list(row["ids"])
            elif row["began"] == began:
                ids.extend(row["ids"])
    if not newest:
        raise ValueError(f"{run_folder} kept no image ids; train with --set run.record_ids=true")
    return {iteration: np.array(newest[iteration][1]) for iteration in sorted(newest)}


def unequal(ledger: dict[int, np.ndarray], num_images: int, batch: int) -> str:
    """What is wrong with a ledger from iteration 0 on, "" where nothing is.

    Every iteration has `batch` images; the stream of batches runs through one permutation of all images after another,
    so no image may have come more than once more often than any other.
    """
    if list(ledger) != list(range(len(ledger))):
        missing = sorted(set(range(max(ledger) + 1)) - set(ledger))
        return f"iterations {missing[:5]} are missing"
    for iteration, ids in ledger.items():
        if len(ids) != batch:
            return f"iteration {iteration} has {len(ids)} images, not {batch}"
    # Ids are rows of the whole index: those held out leave gaps.
    seen, counts = np.unique(np.concatenate(list(ledger.values())), return_counts=True)
    least = counts.min() if len(seen) >= num_images else 0
    if len(seen) > num_images or counts.max() - least > 1:
        return f"{len(seen)} images of {num_images} came {least} to {counts.max()} times"
    return ""
