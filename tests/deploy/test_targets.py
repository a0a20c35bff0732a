"""What holds for every place that runs jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy import targets
from deploy.job import Job
from deploy.local import LocalTarget
from deploy.site import Site


class Unsure(LocalTarget):
    """Says what it would send only as long as its cluster answers."""

    sent = 0

    def render(self, job: Job, site: Site) -> str:
        raise ValueError("the cluster is away")

    def submit(self, job: Job, site: Site) -> str:
        Unsure.sent += 1
        return "1-1"


def test_nothing_is_sent_that_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(targets.TARGETS, "unsure", Unsure)
    with pytest.raises(ValueError, match="the cluster is away"):
        targets.submit("unsure", Job("a", ("train", "demo"), str(tmp_path / "run")), Site())
    assert Unsure.sent == 0
    assert not (tmp_path / "run").exists()
