"""The benchmark of inference has every side, in figures that fit each other, and images leave as the budget says."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.exit_routing import quotas
from trainer.benchmark import inference
from trainer.benchmark.inference import ALONE, benchmark_inference, exit_ratios
from trainer.config import Config
from trainer.evaluation import early_exit
from trainer.models import fold
from trainer.models.config import ModelConfig
from trainer.models.cost import exit_costs
from trainer.recipes.demo import demo

BATCH, BATCHES, BUDGETS = 6, 8, (0.5, 1.0)
STREAM = {"full", "nobody", "early", "refilled"}


def tiny() -> Config:
    model = ModelConfig(num_exits=3, num_classes=10, first_channels=8, growth=4, classifier_channels=16)
    return dataclasses.replace(demo(), model=model)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    """One round: its medians are the very figures that its ratios were taken from."""
    return benchmark_inference(tiny(), num_images=BATCH, num_batches=BATCHES, budgets=BUDGETS, rounds=1)


def by_name(result: dict[str, Any]) -> dict[tuple[str, float | None], dict[str, Any]]:
    rows = {(row["name"], row["budget"]): row for row in result["rows"]}
    assert len(rows) == len(result["rows"])
    return rows


def test_every_side_is_there(result: dict[str, Any]) -> None:
    rows = by_name(result)
    levers = {"baseline", "folded", "channels_last", "bf16"} - result["left_out"].keys()
    alone = {(name, None) for name in (*levers, "full", "nobody", "alone_full")}
    assert rows.keys() == alone | {(name, q) for name in ("early", "refilled", "alone") for q in BUDGETS}
    assert result["left_out"].keys() >= {"fp16", "compile"}
    assert {row["num_images"] for row in rows.values() if row["name"] in STREAM} == {BATCH * BATCHES}
    assert {row["num_images"] for row in rows.values() if row["name"] in levers} == {BATCH}
    assert {row["num_images"] for row in rows.values() if row["name"].startswith("alone")} == {ALONE}
    assert {row["dtype"] for row in rows.values() if row["name"] != "bf16"} == {"float32"}


def test_ratios_fit_each_other(result: dict[str, Any]) -> None:
    rows = by_name(result)
    costs = [cost.mul_adds for cost in exit_costs(tiny().model, 10, tiny().data.image_size)]
    assert result["mul_adds"] == costs
    for row in rows.values():
        over = "full" if row["name"] in STREAM else "alone_full" if "alone" in row["name"] else "baseline"
        assert row["over"] == over
        assert row["speed_up"] == pytest.approx(row["images_per_second"] / rows[over, None]["images_per_second"])
        assert row["p20"] == row["p80"] == row["images_per_second"] > 0
        if over == "alone_full":
            assert row["milliseconds_per_image"] == pytest.approx(1e3 / row["images_per_second"])
        else:
            assert row["milliseconds_per_image"] is None
        if row["exits"] is None:
            assert row["promised"] is row["share"] is None
            continue
        mean = sum(n * cost for n, cost in zip(row["exits"], costs, strict=True)) / row["num_images"]
        assert row["promised"] == pytest.approx(costs[-1] / mean)
        assert row["share"] == pytest.approx(row["speed_up"] / row["promised"])
    assert rows["nobody", None]["promised"] == 1
    assert rows["early", 0.5]["promised"] > rows["early", 1.0]["promised"] > 1


def test_images_leave_as_the_budget_says(result: dict[str, Any]) -> None:
    rows = by_name(result)
    assert rows["nobody", None]["exits"] == [0, 0, BATCH * BATCHES]
    for q in BUDGETS:
        asked = quotas(BATCH * BATCHES, q, 3)
        assert rows["early", q]["exits"] == rows["refilled", q]["exits"] == asked
        assert rows["early", q]["asked"] == pytest.approx([q**k / sum(q**j for j in (1, 2, 3)) for k in (1, 2, 3)])
        for number, of_all in zip(rows["alone", q]["exits"], asked, strict=True):
            assert abs(number - of_all * ALONE / (BATCH * BATCHES)) <= 1


def test_sides_take_turns_and_timed_runs_alone_make_the_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rounds of 1, 2 and 3 seconds a side, the second in reverse."""
    order: list[Any] = []

    def timed(run: Any, device: torch.device) -> float:
        order.append(run)
        return float(order.count(run))

    monkeypatch.setattr(inference, "seconds_of", timed)
    rows = benchmark_inference(tiny(), num_images=2, num_batches=1, budgets=(1.0,), rounds=3)["rows"]
    n = len(rows)
    assert order[:n] == order[n : 2 * n][::-1] == order[2 * n :]
    for row in rows:
        assert row["images_per_second"] == row["num_images"] / 2
        assert row["p20"] == pytest.approx(row["num_images"] * (1 / 3 + 0.4 * (1 / 2 - 1 / 3)))
        assert row["p80"] == pytest.approx(row["num_images"] * (1 / 2 + 0.6 * (1 - 1 / 2)))


def test_compile_is_a_lever_and_early_exit_runs_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[torch.dtype, bool]] = []

    def for_inference(net: Any, dtype: torch.dtype = torch.float32, *, compiled: bool = False) -> Any:
        asked.append((dtype, compiled))
        return fold.for_inference(net, dtype)  # the compiler has a test of its own

    monkeypatch.setattr(inference, "for_inference", for_inference)
    found = benchmark_inference(tiny(), num_images=2, num_batches=1, budgets=(1.0,), rounds=1, with_compile=True)
    rows = by_name(found)
    assert asked.count((torch.float32, True)) == 1
    assert "compile" not in found["left_out"]
    compiled = {"compile", "full", "nobody", "early", "refilled", "alone", "alone_full"}
    assert {row["name"] for row in rows.values() if row["compile"]} == compiled


def test_bf16_runs_early_exit_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "resolve_precision", lambda config, device: None)  # any processor computes it
    seen: set[torch.dtype] = set()

    def at_exit(k: int, logits: torch.Tensor) -> early_exit.Answers:
        seen.add(logits.dtype)
        return early_exit.at_exit(k, logits)

    monkeypatch.setattr(inference, "at_exit", at_exit)
    found = benchmark_inference(tiny(), num_images=4, num_batches=2, budgets=(1.0,), rounds=1, dtype="bf16")
    rows = by_name(found)
    assert rows["fp16", None]["dtype"] == "fp16"
    assert rows["early", 1.0]["dtype"] == rows["full", None]["dtype"] == "bf16"
    assert seen == {torch.bfloat16}
    assert sum(rows["early", 1.0]["exits"]) == 8


def test_a_dtype_that_the_processor_lacks_is_left_out_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainer.learning.precision.cpu_has_bf16", lambda: False)
    found = benchmark_inference(tiny(), num_images=2, num_batches=1, budgets=(1.0,), rounds=1)
    assert ("bf16", None) not in by_name(found)
    assert "does not have in hardware" in found["left_out"]["bf16"]
    with pytest.raises(ValueError, match="does not have in hardware; use float32"):
        benchmark_inference(tiny(), num_images=2, dtype="bf16")


def test_ratios_are_read() -> None:
    assert exit_ratios("0.5, 1,0.5") == (0.5, 1.0)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--budgets", "0.5,half"], "--budgets is '0.5,half'; give exit ratios above 0"),
        (["--budgets", "0.5,-1"], "--budgets is '0.5,-1'"),
        (["--budgets", ""], "--budgets is ''"),
        (["--budgets", "1e30"], "--budgets has 1e+30, whose 4 shares overflow"),
        (["--batch", "0"], "--batch is 0; give 1 or more"),
        (["--batches", "0"], "--batches is 0; give 1 or more"),
        (["--rounds", "0"], "--rounds is 0; give 1 or more"),
        (["--dtype", "int8"], "--dtype is 'int8'"),
    ],
)
def test_refused(earlybird: Any, words: list[str], message: str) -> None:
    refused = earlybird("benchmark", "inference", "demo", "--device", "cpu", *words)
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1), refused.err
    assert message in refused.err


def test_the_command_prints_tables_json_and_a_picture(earlybird: Any, tmp_path: Path) -> None:
    words = ["benchmark", "inference", "demo", "--device", "cpu", "--batch", 2, "--batches", 2, "--rounds", 1]
    small = [word for name in ("num_exits=2", "first_channels=8", "growth=4") for word in ("--set", f"model.{name}")]
    printed = earlybird(*words, *small, "--budgets", "0.5", "--png", tmp_path / "sides.png")
    assert printed.code == 0, printed.err
    assert (tmp_path / "sides.png").read_bytes().startswith(b"\x89PNG")
    for said in ("demo, 2 images a batch, cpu", "channels_last", "refilled, q 0.5", "alone_full", "left out: fp16"):
        assert said in printed.out
    assert "…" not in printed.out  # it fits 80 columns
    found = json.loads(earlybird(*words, *small, "--budgets", "0.5", "--json").out)
    assert found.keys() >= {"rows", "recipe", "batch", "rounds", "left_out", "hardware", "versions"}
    assert (found["recipe"], found["batch"], found["rounds"], found["num_classes"]) == ("demo", 2, 1, 14)
