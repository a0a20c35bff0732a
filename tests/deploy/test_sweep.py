"""Combinations, their names, and which jobs are left alone."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy import sweep
from deploy.job import LONGEST_NAME, Job
from deploy.record import Record
from deploy.site import Site
from deploy.sweep import carry_out, combinations, job_name
from deploy.target import Standing


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


def test_a_job_that_nobody_knows_of_is_not_followed_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other one, which its scheduler answers for, is."""
    jobs = {str(tmp_path / name): Job("a", ("train", "demo"), str(tmp_path / name)) for name in ("lost", "well")}
    looks: list[str] = []

    def submitted(target: str, job: Job, site: Site, **_: object) -> Record:
        return Record(target, job.run_folder, job.name, 0.0, job.run_folder, "")

    def standing(record: Record) -> Standing:
        looks.append(record.run_folder)
        if record.run_folder.endswith("lost"):
            return Standing("unknown", "squeue gave no answer")
        return Standing("running" if looks.count(record.run_folder) < 40 else "completed")

    monkeypatch.setattr(sweep, "submit", submitted)
    monkeypatch.setattr(sweep, "standing_of", standing)
    told: list[str] = []
    states = carry_out(
        jobs, "slurm", Site(), finished=lambda folder: looks.count(folder) >= 40,
        told=lambda folder, what: told.append(what), pause=0.01, silence=0.1,
    )  # fmt: skip
    assert list(states.values()) == ["unknown", "completed"]
    assert "is followed no more (squeue gave no answer)" in told[2]


def test_what_is_complete_is_not_submitted(tmp_path: Path) -> None:
    jobs = {folder: Job("a", ("train", "demo"), folder) for folder in (str(tmp_path / "x"), str(tmp_path / "y"))}
    states = carry_out(jobs, "local", Site(), finished=lambda folder: True)
    assert set(states.values()) == {"completed"}
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="add --wait"):
        carry_out(jobs, "local", Site(), finished=lambda folder: True, at_once=1, wait=False)
