"""The benchmark covers every operation with sides that agree."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest
import torch

from kernels import bench


def test_rows_on_the_cpu_and_as_json():
    command = [sys.executable, "-m", "kernels.bench", "--device", "cpu", "--rounds", "2", "--json"]
    rows = [json.loads(line) for line in subprocess.run(command, capture_output=True, check=True).stdout.splitlines()]
    operations = ("exit_losses", "exit_routing", "lookahead", "norm_relu", "normalize")
    assert {(r["operation"], r["side"]) for r in rows} == {
        (o, s) for o in operations for s in ("separate", "reference")
    }
    for operation in operations:  # CIFAR's shapes and ImageNet's; tangent rules have rows of their own
        cases = {r["case"] for r in rows if r["operation"] == operation}
        assert len(cases) == (4 if operation in ("exit_losses", "norm_relu") else 2)
    for row in rows:
        assert 0 < row["p20"] <= row["median_seconds"] <= row["p80"]
        assert row["rounds"] == 2
        assert row["bytes"] > 0


def test_sides_that_disagree_are_not_timed():
    case = next(iter(bench._cases(torch.device("cpu"))))
    wrong = dataclasses.replace(case, sides={**case.sides, "wrong": lambda: [t + 1 for t in case.sides["separate"]()]})
    bench._check_agreement(case)
    with pytest.raises(RuntimeError, match="wrong and separate differ"):
        bench._check_agreement(wrong)


def test_no_rounds_are_refused():
    with pytest.raises(ValueError, match="0 rounds"):
        bench.benchmark_kernels(torch.device("cpu"), rounds=0)
