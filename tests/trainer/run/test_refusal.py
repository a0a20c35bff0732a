"""A refusal among torchrun's starts; tests of the job's wrappers have a real torchrun."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trainer.run.refusal import refused_once, why_refused

Start = Callable[..., int]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Start:
    """(restart count, reason of the refusal, logged meanwhile, ranks) -> how often the body ran."""

    def started(count: int | None, reason: str = "", log: str = "", ranks: int = 2) -> int:
        environment = {"RANK": "0", "WORLD_SIZE": str(ranks), "TORCHELASTIC_RESTART_COUNT": str(count or 0)}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        if count is None:
            monkeypatch.delenv("TORCHELASTIC_RESTART_COUNT")
        ran = 0
        with refused_once(tmp_path):
            ran += 1
            with (tmp_path / "log.jsonl").open("a") as file:
                file.write(log)
            if reason:
                raise ValueError(reason)
        return ran

    return started


def test_told_once_and_forgotten_by_the_next_torchrun(start: Start, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").touch()
    with pytest.raises(ValueError, match="a is 0"):
        start(0, "a is 0;\n give 1")
    assert why_refused(tmp_path) == "a is 0; give 1"
    with pytest.raises(ValueError, match=r"^a is 0; give 1$"):
        start(1)
    assert (start(0), why_refused(tmp_path)) == (1, "")


@pytest.mark.parametrize(
    ("count", "log", "ranks"),
    [(None, "", 2), (0, '{"event": "train"}\n', 2), (0, "", 1)],
    ids=["no torchrun", "it trained", "nodes are missing"],
)
def test_what_another_start_may_mend_is_not_kept(
    start: Start, tmp_path: Path, count: int | None, log: str, ranks: int
) -> None:
    row = {"event": "start", "iteration": 0, "world_size": 2}
    (tmp_path / "log.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match="a is 0"):
        start(count, "a is 0", log, ranks)
    assert not why_refused(tmp_path)
