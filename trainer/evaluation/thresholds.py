"""The budgets of a run: the thresholds that were set on its held-out images, and what they gave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trainer.run.folder import RunFolder


def read_budgets(run: Path, iteration: int) -> list[dict[str, Any]]:
    """Rows (ratio, thresholds [K], heldout_top1, mul_adds, ...) for the net of `iteration`: those that `evaluate`
    measured, else those that `tune` kept; none where nobody set any.

    Raises ValueError where all that the run folder holds are of other iterations: they belong to another net.
    """
    folder, others = RunFolder(run), []
    for kept, name in ((folder.read_evaluation(), "budgeted"), (folder.read_thresholds(), "budgets")):
        rows = (kept or {}).get(name, [])
        if rows and is_of(kept, iteration):
            return rows
        others += [str((kept or {}).get("iteration", "unknown"))] if rows else []
    if others:
        raise ValueError(
            f"{run} holds thresholds of iteration {' and '.join(dict.fromkeys(others))}, and its newest checkpoint is "
            f"of iteration {iteration}; run earlybird evaluate {run}"
        )
    return []


def is_of(kept: dict[str, Any] | None, iteration: int | None) -> bool:
    """Whether what evaluate or tune kept of a run, if anything, is of its net after so many iterations."""
    return kept is not None and iteration is not None and kept.get("iteration") == iteration
