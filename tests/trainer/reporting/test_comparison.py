"""Runs side by side: groups by settings, what they tell of their means, and the page."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from trainer.config import resolve, write_config
from trainer.reporting.comparison import compare, write_page

OFF = "sample_weights.enabled=false"
STRAIGHT = ((1e6, 50.0), (2e6, 60.0))  # a budgeted curve


def run(
    folder: Path,
    top1: list[float],
    *settings: str,
    mul_adds: tuple[float, ...] = (1e6, 2e6),
    curve: tuple[tuple[float, float], ...] = (),
    shots: dict[str, list[float]] | None = None,
) -> Path:
    folder.mkdir()
    write_config(resolve("demo", list(settings)), folder / "config.json")
    exits = [{"exit": k, "top1": value} for k, value in enumerate(top1, start=1)]
    evaluation = {"split": "val", "anytime": exits, "mul_adds": mul_adds[: len(top1)]}
    evaluation["budgeted"] = [{"mul_adds": cost, "top1": value} for cost, value in curve]
    evaluation["shots"] = [{"group": name, "num_classes": 1, "top1": values} for name, values in (shots or {}).items()]
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    (folder / "log.jsonl").write_text(
        json.dumps({"event": "eval", "iteration": 5, "split": "val", "exits": exits}) + "\n"
    )
    return folder


def raised(by: float) -> tuple[tuple[float, float], ...]:
    return tuple((cost, top1 + by) for cost, top1 in STRAIGHT)


@pytest.fixture
def two_groups(tmp_path: Path) -> list[Path]:
    """Four seeds without weights, the same four with: better by 1, 2, 1 and 2 points, worse or better by chance."""
    base = [50.0, 53.0, 51.0, 56.0]
    more = [(1.0, -0.5), (2.0, 0.5), (1.0, -1.0), (2.0, 1.5)]
    off = [run(tmp_path / f"b{i}", [x, x + 9], OFF, f"seed={i}", curve=raised(x)) for i, x in enumerate(base)]
    on = [
        run(tmp_path / f"w{i}", [x + first, x + 9 + last], f"seed={i}", curve=raised(x + first))
        for i, (x, (first, last)) in enumerate(zip(base, more, strict=True))
    ]
    return [*off, *on]


def text_of(page: Path) -> str:
    return " ".join(re.sub(r"<style>.*?</style>|<[^>]+>", " ", page.read_text(), flags=re.S).split())


def test_seeds_are_one_row_with_mean_and_spread(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / "b0", [50.0, 60.0], OFF, "seed=0", "telemetry.port=9400"),
        run(tmp_path / "w0", [52.0, 66.0], "seed=0"),
        run(tmp_path / "b1", [54.0, 62.0], OFF, "seed=1"),
    ]
    page = write_page(compare(runs), tmp_path / "page" / "both.html")
    text = text_of(page)
    # t(0.975, 1) = 12.7062, of the standard deviation over the root of 2
    assert "enabled False 2 52.00 &plusmn; 2.83 [26.59, 77.41] 61.00 &plusmn; 1.41 [48.29, 73.71]" in text
    assert "sample_weights.enabled True 1 52.00 66.00" in text
    minus = "sample_weights.enabled True minus sample_weights.enabled False 1 and 2"
    assert f"{minus} +0.00 no interval +5.00 no interval" in text
    assert not re.search('class="(up|down)"', page.read_text()), "without an interval nothing is told"
    assert f"No budgeted curves: {tmp_path / 'b0'} has no budgeted figures" in text
    assert "earlybird train demo --set sample_weights.enabled=False --set seed=1" in text
    sources = re.findall(r'(?:src|href)="([^"]{20})', page.read_text())
    assert len(sources) == 2
    assert all(source.startswith("data:image/svg+xml") for source in sources), "self-contained"
    assert {path.name for path in page.parent.iterdir()} == {"both.html", "both-anytime.png", "both-learning.png"}


def test_same_seeds_are_paired(two_groups: list[Path], tmp_path: Path) -> None:
    found = compare(two_groups)
    (row,) = found.differences
    assert row.paired
    # 1 2 1 2: mean 1.5, standard deviation 0.57735; t(0.975, 3) = 3.182446
    first, last = row.exits
    assert first.interval == pytest.approx((1.5 - 3.182446 * 0.288675, 1.5 + 3.182446 * 0.288675), abs=1e-5)
    assert (first.within_chance, last.within_chance) == (False, True)
    assert row.budgeted is not None
    assert row.budgeted.mean == pytest.approx(1.5), "every curve is moved as its first exit is"
    assert row.budgeted.margin == pytest.approx(first.margin)
    page = write_page(compare(two_groups), tmp_path / "c.html")
    text = text_of(page)
    minus = "minus sample_weights.enabled False 4 pairs +1.50 [+0.58, +2.42] +0.12 [-1.64, +1.89] within chance +1.50"
    assert minus in text
    assert "over 1 to 2 M Mul-Adds" in text
    assert re.findall('class="(up|down)">([^<]*)', page.read_text()) == [("up", "+1.50"), ("up", "+1.50")]
    reverse = write_page(compare(two_groups[::-1]), tmp_path / "r.html").read_text()
    assert re.findall('class="(up|down)">([^<]*)', reverse) == [("down", "-1.50"), ("down", "-1.50")]


def test_other_seeds_are_compared_by_welch(two_groups: list[Path]) -> None:
    (row,) = compare(two_groups[:-1]).differences
    sides = [[read.top1[0] for read in group.runs] for group in (row.ours, row.theirs)]
    expected = stats.ttest_ind(*sides, equal_var=False).confidence_interval(0.95)
    assert (row.paired, row.exits[0].interval) == (False, pytest.approx(tuple(expected)))


def test_the_order_of_runs_changes_no_digit(two_groups: list[Path]) -> None:
    first, *others = two_groups
    expected = compare(two_groups)
    for seed in range(5):
        random.Random(seed).shuffle(others)
        found = compare([first, *others])
        assert [row.exits for row in found.differences] == [row.exits for row in expected.differences]
        assert [row.budgeted for row in found.differences] == [row.budgeted for row in expected.differences]
        assert [group.exits() for group in found.groups] == [group.exits() for group in expected.groups]


def test_a_seed_that_comes_twice_has_no_interval(tmp_path: Path) -> None:
    runs = [run(tmp_path / f"a{i}", [50.0 + i, 60.0], "seed=1", f"data.num_threads={i + 1}") for i in range(3)]
    runs += [run(tmp_path / f"b{i}", [52.0 + i, 60.0], OFF, f"seed={i}") for i in range(3)]
    found = compare(runs)
    assert [exit_.margin for exit_ in found.groups[0].exits()] == [None, None]
    assert found.groups[1].exits()[0].margin == pytest.approx(4.302653 / 3**0.5)
    assert found.differences[0].exits[0].margin is None
    assert "one seed twice" in text_of(write_page(compare(runs), tmp_path / "c.html"))


def test_budgeted_curves_are_read_where_every_run_has_one(tmp_path: Path) -> None:
    a = run(tmp_path / "a", [50.0, 60.0], "seed=0", curve=((1e6, 40.0), (3e6, 60.0)))
    b = run(tmp_path / "b", [50.0, 60.0], "seed=1", curve=((2e6, 60.0), (5e6, 90.0)))
    found = compare([a, b])
    assert (found.costs[0], found.costs[-1]) == (2e6, 3e6)
    curve = found.groups[0].curve(found.costs)
    assert [curve[0].mean, curve[-1].mean] == pytest.approx([55.0, 65.0])
    assert curve[0].margin == pytest.approx(12.706205 * 5.0, rel=1e-6)
    assert found.groups[0].budgeted(found.costs).mean == pytest.approx(60.0)
    apart = run(tmp_path / "apart", [50.0, 60.0], OFF, curve=((6e6, 40.0), (7e6, 60.0)))
    assert (len(compare([a, apart]).costs), compare([a, apart]).differences[0].budgeted) == (0, None)
    assert "share no cost" in compare([a, apart]).missing
    none = run(tmp_path / "none", [50.0, 60.0], OFF)
    assert "(data.heldout is 0)" in compare([a, none]).missing
    (none / "evaluation.json").unlink()
    assert f"earlybird evaluate {none} makes them" in compare([a, none]).missing
    np.testing.assert_array_equal(compare([a, none]).costs, [])


def test_classes_of_many_and_few_images_where_every_run_has_them(earlybird: Any, tmp_path: Path) -> None:
    few = [(10.0, 11.0), (13.0, 15.0)]  # without weights, with weights
    runs = [
        run(
            tmp_path / name, [50.0, 60.0], *off, f"seed={seed}", shots={"many": [70.0, 71.0], "few": [tops[seed], 20.0]}
        )
        for name, off, seed, tops in (
            ("b0", [OFF], 0, few[0]),
            ("b1", [OFF], 1, few[0]),
            ("w0", [], 0, few[1]),
            ("w1", [], 1, few[1]),
        )
    ]
    found = compare(runs)
    assert found.shots == ("many", "few")
    (row,) = found.differences
    # differences 3 and 4: mean 3.5, t(0.975, 1) = 12.7062 times 0.5
    assert (row.shots["few"][0].mean, row.shots["few"][0].margin) == (3.5, pytest.approx(6.3531, abs=1e-4))
    text = text_of(write_page(found, tmp_path / "c.html"))
    assert "enabled False few (below 20) 2 10.50 &plusmn; 0.71 [4.15, 16.85] 20.00 &plusmn; 0.00" in text
    assert "minus sample_weights.enabled False few (below 20) 2 pairs +3.50 [-2.85, +9.85] within chance" in text
    values = earlybird("report", *runs, "--out", tmp_path / "c.html", "--json").json
    assert values["rows"][1]["shots"]["few"]["top1"] == [14.0, 20.0]
    assert values["rows"][1]["shots"]["few"]["spread"] == pytest.approx([2**0.5, 0.0])
    assert values["differences"][0]["shots"]["few"][0]["difference"] == 3.5
    balanced = run(tmp_path / "balanced", [50.0, 60.0], "run.epochs=1", shots={"many": [50.0, 60.0]})
    without = compare([*runs, balanced])
    assert (without.shots, without.differences[0].shots) == ((), {}), "not every run has them"
    assert "By class size" not in text_of(write_page(without, tmp_path / "c.html"))


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    good = run(tmp_path / "good", [50.0, 60.0])
    with pytest.raises(ValueError, match="other numbers"):
        write_page(compare([good, run(tmp_path / "three", [1.0, 2.0, 3.0])]), tmp_path / "page.html")
    with pytest.raises(ValueError, match="is no run folder"):
        write_page(compare([good, tmp_path / "none"]), tmp_path / "page.html")
    raw = run(tmp_path / "raw", [1.0, 2.0])
    (raw / "evaluation.json").unlink()
    assert write_page(compare([good, raw]), tmp_path / "page.html"), "the log's newest evaluation"
    (raw / "log.jsonl").unlink()
    with pytest.raises(ValueError, match=f"run earlybird evaluate {raw}"):
        write_page(compare([good, raw]), tmp_path / "page.html")


def test_the_command(earlybird: Any, tmp_path: Path) -> None:
    runs = [run(tmp_path / name, [50.0, 60.0], f"run.epochs={n}") for n, name in ((1, "a"), (2, "b"))]
    outcome = earlybird("report", *runs, "--out", tmp_path / "c.html")
    assert outcome.code == 0
    assert outcome.out.endswith(f"Report: {tmp_path / 'c.html'}\n")
    assert "Minus epochs 1, percentage points" in outcome.out
    values = earlybird("report", *runs, "--out", tmp_path / "c.html", "--json").json
    assert [row["name"] for row in values["rows"]] == ["epochs 1", "epochs 2"]
    assert values["report"] == str(tmp_path / "c.html")
    refused = earlybird("report", runs[0], "--out", tmp_path / "c.html")
    assert (refused.code, refused.out) == (2, "")
    assert "--out" in refused.err
