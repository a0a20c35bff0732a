"""Costs of others stand beside the very nets that they are of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.config import resolve
from trainer.reporting import cost_table as cost_room
from trainer.reporting.cost_table import cost_rows, known_costs
from trainer.reporting.published import COSTS, PROGRAM, PUBLISHED

# The reference file's name of each net in COSTS.
NAMES = {
    "msdnet_imagenet_step4": ("imagenet-msdnet-step4", ()),
    "msdnet_imagenet_step6": ("imagenet-msdnet-step6", ()),
    "msdnet_imagenet_step7": ("imagenet-msdnet-step7", ()),
    "msdnet_imagenet_base6_step6": ("imagenet-msdnet-step6", ("model.base=6",)),
    "msdnet_imagenet_base7_step7": ("imagenet-msdnet-step7", ("model.base=7",)),
    "msdnet_cifar100_5exits": ("cifar100-msdnet-5exits", ()),
    "msdnet_cifar100_7exits": ("cifar100-msdnet-7exits", ()),
    "ranet_c1_cifar100": ("cifar100-ranet-c1", ()),
    "ranet_c2_cifar100": ("cifar100-ranet-c2", ()),
    "ranet_imagenet_step8": ("imagenet-ranet", ()),
}


def test_the_programs_digits_are_those_of_the_reference(vectors_folder: Path) -> None:
    reference = json.loads((vectors_folder / "costs.json").read_text())
    assert reference.keys() == NAMES.keys()
    for name, net in NAMES.items():
        known = {cost.figure: cost for cost in COSTS if (cost.recipe, cost.settings) == net}
        assert known.keys() == {"params", "mul_adds"}, f"{name}: printed, or else counted"
        for figure, key in (("params", "params_M"), ("mul_adds", "mul_adds_M")):
            if known[figure].source == PROGRAM:
                assert (list(known[figure].values), known[figure].unit) == (reference[name][key], "M")


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return cost_rows()


def test_ours_are_theirs_at_their_digits(rows: list[dict[str, Any]]) -> None:
    assert [sum(row["source"] == source for row in rows) for source in (PUBLISHED, PROGRAM)] == [35, 83]
    assert all(row["difference"] == 0 and row["theirs"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("recipe", "settings", "sources"),
    [
        ("imagenet-msdnet-step4", [], [PUBLISHED, PUBLISHED]),
        ("imagenet-msdnet-step4-baseline", ["run.epochs=1"], [PUBLISHED, PUBLISHED]),
        ("imagenet-msdnet-step4", ["model.step=5"], []),
        ("imagenet-msdnet-step4", ["model.num_classes=1000"], [PUBLISHED, PUBLISHED]),
        ("imagenet-msdnet-step4", ["model.num_classes=10"], []),
        ("imagenet-msdnet-step4", ["data.image_size=192"], []),
        ("cifar100-lt-msdnet-5exits", [], [PUBLISHED, PROGRAM]),
        ("cifar10-msdnet-5exits", [], []),
        ("cifar100-ranet-c2", [], [PROGRAM, PROGRAM]),
        ("demo", [], []),
    ],
)
def test_costs_follow_the_net(recipe: str, settings: list[str], sources: list[str]) -> None:
    assert [cost.source for cost in known_costs(resolve(recipe, settings))] == sources


def test_another_recipe_with_the_same_net() -> None:
    """Step 4 with 6 layers a block is step 6."""
    found = known_costs(resolve("imagenet-msdnet-step4", ["model.step=6"]))
    assert {cost.recipe for cost in found} == {"imagenet-msdnet-step6"}


def test_the_tables_name_their_source(
    earlybird: Any, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(cost_room, "cost_rows", lambda: rows)
    lines = earlybird("cost", "cifar100-ranet-c1").out.splitlines()
    assert lines[1].count("authors'") == 2
    assert "published" not in "".join(lines)
    assert ["6", "2.6173", "2.6173", "58.9907", "58.991", "58.6769"] in [line.split()[1::2] for line in lines]
    other = earlybird("cost", "imagenet-msdnet-step4", "--set", "model.step=5").out
    assert "published" not in other
    assert "23.96" not in other
    table = earlybird("reproduce", "cost").out
    assert "Costs, authors' program, of what the paper does not print" in table
    assert max(map(len, table.splitlines())) <= 80
    assert ["8", "87.9726", "87.9726", "1680.980 M", "1680.980 M"] in [
        [cell.strip() for cell in line.split("│")[2:-1]] for line in table.splitlines()
    ]
    assert table.endswith("118 figures, 0 differ at the digits given\n")


def test_a_difference_is_named(earlybird: Any, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost_room, "cost_rows", lambda: [rows[0] | {"ours": 4.25, "difference": 0.01}, *rows[1:]])
    done = earlybird("reproduce", "cost")
    assert done.code == 1
    assert "imagenet-msdnet-step4, exit 1: params M 4.25 for 4.24\n118 figures, 1 differ" in done.out
    assert earlybird("reproduce", "cost", "--json").json["differing"] == 1
