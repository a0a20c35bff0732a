"""health.non_finite, as a table."""

from __future__ import annotations

from typing import Any

import pytest

from trainer.run.health import HealthConfig
from trainer.run.verdict import verdict

GRADIENT, LOSS = "a gradient is not finite", "a loss is not finite"


@pytest.mark.parametrize(
    ("policy", "scaled", "left_out", "in_a_row", "seen", "found"),
    [
        ("stop", False, 0, 0, None, None),
        ("stop", False, 0, 0, LOSS, LOSS),
        ("stop", False, 1, 1, None, GRADIENT),
        ("stop", False, 1, 1, LOSS, LOSS),
        ("stop", True, 1, 1, None, None),  # the loss scale is found so
        ("stop", True, 4, 4, None, GRADIENT),
        ("skip", False, 3, 3, LOSS, None),
        ("skip", False, 4, 4, None, GRADIENT),
        ("skip", False, 0, 4, LOSS, LOSS),  # the weights themselves are spoilt
        ("rollback", False, 1, 1, None, GRADIENT),
        ("rollback", True, 1, 1, None, None),
    ],
)
def test_verdicts(policy: Any, scaled: bool, left_out: int, in_a_row: int, seen: str | None, found: str | None) -> None:
    assert verdict(HealthConfig(policy, max_skips=3), scaled, left_out, in_a_row, seen) == found
