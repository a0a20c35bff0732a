"""Thresholds are read for the net that they were set for, and for no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from trainer.evaluation.thresholds import read_budgets
from trainer.run.folder import RunFolder


def kept(iteration: int | None, name: str, ratio: float) -> dict[str, Any]:
    return {name: [{"ratio": ratio}]} | ({} if iteration is None else {"iteration": iteration})


def test_evaluations_first_then_tunes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert read_budgets(tmp_path, 9) == []
    folder.write_thresholds(kept(9, "budgets", 0.5))
    assert read_budgets(tmp_path, 9) == [{"ratio": 0.5}]
    folder.write_evaluation(kept(9, "budgeted", 0.75))
    assert read_budgets(tmp_path, 9) == [{"ratio": 0.75}]
    folder.write_evaluation(kept(8, "budgeted", 0.75))
    assert read_budgets(tmp_path, 9) == [{"ratio": 0.5}], "an evaluation of another net is passed over"
    folder.write_evaluation({"iteration": 9, "budgeted": []})
    assert read_budgets(tmp_path, 9) == [{"ratio": 0.5}]


def test_thresholds_of_another_net_are_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.write_evaluation(kept(7, "budgeted", 0.75))
    folder.write_thresholds(kept(None, "budgets", 0.5))
    said = f"of iteration 7 and unknown, and its newest checkpoint is of iteration 9; run earlybird evaluate {tmp_path}"
    with pytest.raises(ValueError, match=said):
        read_budgets(tmp_path, 9)
    folder.write_evaluation({"iteration": 9, "budgeted": []})
    with pytest.raises(ValueError, match="of iteration unknown"):
        read_budgets(tmp_path, 9)
