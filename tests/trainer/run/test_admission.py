"""One way from a recipe to a job, whoever submits it."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.site import site_from
from trainer.config import resolve
from trainer.run.admission import at_site, job_of


def test_a_sites_port_is_a_setting_once() -> None:
    site = site_from({"ports": {"telemetry": 9400}})
    assert at_site(["seed=1"], site) == ["seed=1", "telemetry.port=9400"]
    assert at_site(["telemetry.port=0"], site) == ["telemetry.port=0"]
    assert at_site(["seed=1"], site_from({})) == ["seed=1"]


def test_the_job_trains_what_was_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["run.grace=90s", "seed=3"]
    job = job_of("demo", settings, resolve("demo", settings), Path("r"), data="d", max_steps=5, name="a", nodes=2)
    assert job.arguments == ("train", "demo", "--set", "run.grace=90s", "--set", "seed=3", "--max-steps", "5")
    assert (job.run_folder, job.data, job.grace_seconds, job.nodes) == (f"{tmp_path}/r", f"{tmp_path}/d", 90, 2)
    there = job_of("demo", [], resolve("demo", []), Path("r"), data="d", data_elsewhere=True, device="cpu", name="a")
    assert (there.data, there.arguments) == ("d", ("train", "demo", "--device", "cpu"))
