"""A comparison in a terminal and for programs says the same as the page."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from trainer.config import resolve
from trainer.reporting.comparison import Comparison, Group, Run, difference
from trainer.reporting.comparison_table import comparison_note, comparison_tables, comparison_values

COSTS = np.array([1e6, 2e6])


def group(name: str, tops: list[list[float]], curve: tuple[tuple[float, float], ...] = ()) -> Group:
    """The run of seed i has the accuracies tops[i], and `curve` raised by i."""
    runs = []
    for seed, top1 in enumerate(tops):
        raised = tuple((cost, value + seed) for cost, value in curve)
        config = dataclasses.replace(resolve("demo", []), seed=seed)
        runs.append(Run(Path(name, f"seed-{seed}"), config, tuple(top1), "val", (1e6, 2e6), raised, ()))
    return Group(name, tuple(runs))


@pytest.fixture
def found() -> Comparison:
    """[a] first, so that a name with brackets is seen as it is."""
    curve = ((1e6, 50.0), (2e6, 60.0))
    groups = (
        group("[a]", [[50.0, 60.0], [52.0, 64.0], [54.0, 62.0]], curve),
        group("b", [[51.0, 61.0], [53.25, 63.0], [55.0, 62.0]], curve),
        group("c", [[70.0, 61.0]], curve),
    )
    return Comparison(groups, COSTS, "", tuple(difference(one, groups[0], COSTS) for one in groups[1:]))


def shown(found: Comparison, width: int = 80) -> str:
    stream = io.StringIO()
    for table in comparison_tables(found):
        Console(file=stream, width=width).print(table, highlight=False)
    return "\n".join(" ".join(line.replace("│", " ").split()) for line in stream.getvalue().splitlines())


def test_values_for_programs(found: Comparison) -> None:
    values = json.loads(json.dumps(comparison_values(found), allow_nan=False))
    a, b, c = values["rows"]
    assert (a["name"], a["runs"], a["top1"], a["spread"]) == (
        "[a]",
        ["[a]/seed-0", "[a]/seed-1", "[a]/seed-2"],
        [52.0, 62.0],
        [2.0, 2.0],
    )
    assert a["interval"][0] == pytest.approx([52 - 4.302653 * 2 / 3**0.5, 52 + 4.302653 * 2 / 3**0.5], rel=1e-6)
    assert a["budgeted"]["top1"] == b["budgeted"]["top1"] == pytest.approx(56.0)
    assert (c["spread"], c["interval"], c["budgeted"]["interval"]) == (None, None, None)
    minus_b, minus_c = values["differences"]
    assert (minus_b["name"], minus_b["minus"], minus_b["paired"], minus_c["paired"]) == ("b", "[a]", True, False)
    assert minus_b["exits"][0]["difference"] == pytest.approx(13 / 12)
    assert [one["within_chance"] for one in minus_b["exits"]] == [False, True]
    assert minus_b["budgeted"] == {"difference": 0.0, "interval": [0.0, 0.0], "within_chance": True}
    assert minus_c["exits"][0] == {"difference": 18.0, "interval": None, "within_chance": None}
    assert values["costs"] == [1e6, 2e6]


def test_tables_for_readers(found: Comparison) -> None:
    text = shown(found)
    assert "[a] exit 1 52.00 ± 2.00 [47.03, 56.97]\n3 runs exit 2 62.00 ± 2.00 [57.03, 66.97]\nbudgeted 56.00" in text
    assert "c exit 1 70.00\n1 run exit 2 61.00\nbudgeted 55.00" in text
    assert "Minus [a], percentage points" in text
    assert "b exit 1 +1.08 [+0.72, +1.44]\n3 pairs exit 2 +0.00 [-2.48, +2.48] within chance\nbudgeted +0.00" in text
    assert "c exit 1 +18.00 no interval\n1 and 3 runs exit 2 -1.00 no interval" in text
    long = dataclasses.replace(found.groups[1], name="sample_weights.enabled True, " * 3)
    narrow = shown(dataclasses.replace(found, groups=(found.groups[0], long)))
    assert narrow.count("sample_weights.enabled") == 3, "no name is cut"
    assert "No interval: of a single run" in comparison_note(found)
    assert "over 1 to 2 M Mul-Adds, the costs that every run reaches" in comparison_note(found)


def test_class_sizes_are_tables_of_their_own(found: Comparison) -> None:
    assert "by class size" not in shown(found)
    assert comparison_values(found)["rows"][0]["shots"] is None
    tailed = tuple(
        Group(
            one.name,
            tuple(
                dataclasses.replace(run, shots={"many": (90.0 + seed, 91.0), "few": (1.0, 2.0 + seed)})
                for seed, run in enumerate(one.runs)
            ),
        )
        for one in found.groups[:2]
    )
    sized = Comparison(tailed, COSTS, "", (difference(tailed[1], tailed[0], COSTS, ("many", "few")),))
    text = shown(sized)
    assert "Top-1 % by class size, val" in text
    assert "[a] many, exit 1 91.00 ± 1.00 [88.52, 93.48]\n3 runs many, exit 2 91.00 ± 0.00" in text
    assert "few, exit 1 1.00 ± 0.00 [1.00, 1.00]\nfew, exit 2 3.00 ± 1.00 [0.52, 5.48]" in text
    assert "Minus [a] by class size, percentage points" in text
    assert "b many, exit 1 +0.00 [+0.00, +0.00] within chance\n3 pairs many, exit 2 +0.00" in text
    assert "Class size: training images, many (above 100), few (below 20)" in comparison_note(sized)


def test_without_costs_and_of_one_group(found: Comparison) -> None:
    alone = Comparison(found.groups[:1], np.empty(0), "nobody evaluated", ())
    assert "budgeted" not in shown(alone)
    assert "Minus" not in shown(alone)
    assert comparison_note(alone).endswith("No budgeted figures: nobody evaluated.")
    values = comparison_values(alone)
    assert (values["costs"], values["rows"][0]["budgeted"], values["differences"]) == (None, None, [])
