"""Combinations, their names, and which jobs are left alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.job import LONGEST_NAME, Job
from deploy.site import Site
from deploy.sweep import carry_out, combinations, job_name


def test_every_combination_the_last_changing_fastest() -> None:
    found = combinations(["meta.ratio=0.5,0.75", "weight_net.width=10,100"])
    assert [one.label for one in found] == [
        "ratio-0.5_width-10",
        "ratio-0.5_width-100",
        "ratio-0.75_width-10",
        "ratio-0.75_width-100",
    ]
    assert found[1].settings == ("meta.ratio=0.5", "weight_net.width=100")
    assert combinations([])[0].settings == ()


def test_names_that_change_together_and_values_that_are_lists() -> None:
    joined = combinations(["weight_net.depth:weight_net.width=1:10,2:500"])
    assert [one.settings for one in joined] == [
        ("weight_net.depth=1", "weight_net.width=10"),
        ("weight_net.depth=2", "weight_net.width=500"),
    ]
    lists = combinations(["model.growth_factors=1,1;2,1"])
    assert [one.settings for one in lists] == [("model.growth_factors=1,1",), ("model.growth_factors=2,1",)]
    assert len(combinations(["model.growth_factors=1,1"], lists=["model.growth_factors"])) == 1


def test_labels_of_values_that_look_alike_differ() -> None:
    found = combinations(["data.path=a/b,a-b"])
    assert len({one.label for one in found}) == 2


@pytest.mark.parametrize(
    ("vary", "said"),
    [
        (["meta.ratio"], "write NAME=VALUE"),
        (["meta.ratio="], "write NAME=VALUE"),
        (["meta.ratio=1,1"], "a value comes twice"),
        (["meta.ratio=1,2", "meta.ratio=3"], "comes twice"),
        (["a:b=1:2,3"], "2 values"),
        ([f"a={','.join(map(str, range(50)))}", f"b={','.join(map(str, range(50)))}"], "2,500 combinations"),
    ],
)
def test_refusals_name_the_value(vary: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        combinations(vary)


@given(st.lists(st.text(min_size=1), min_size=1, max_size=4))
def test_any_name_is_one_of_a_job(parts: list[str]) -> None:
    name = job_name(*parts)
    assert len(name) <= LONGEST_NAME
    assert Job(name, ("train", "demo"), "/run").name == name


def test_what_is_complete_is_not_submitted(tmp_path: Path) -> None:
    jobs = {folder: Job("a", ("train", "demo"), folder) for folder in (str(tmp_path / "x"), str(tmp_path / "y"))}
    states = carry_out(jobs, "local", Site(), finished=lambda folder: True)
    assert set(states.values()) == {"completed"}
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="add --wait"):
        carry_out(jobs, "local", Site(), finished=lambda folder: True, at_once=1, wait=False)
