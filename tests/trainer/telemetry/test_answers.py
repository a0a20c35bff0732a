"""An answer is written once for all who ask for it, and anew when it would be another one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest

from trainer.telemetry import answers
from trainer.telemetry.answers import Answers


class Counted:
    """Says how often it was asked."""

    def __init__(self) -> None:
        self.asked, self.version = 0, 0
        self.front = Answers(self, lambda: self.version)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        self.asked += 1
        start_response("200 OK", [("Content-Type", environ["HTTP_ACCEPT"])])
        return [b"%d" % self.asked]

    def get(self, accepts: str = "text") -> tuple[str, str]:
        heads: list[Any] = []
        body = self.front({"REQUEST_METHOD": "GET", "HTTP_ACCEPT": accepts}, lambda *head: heads.append(head))
        ((_, headers),) = heads
        return b"".join(body).decode(), dict(headers)["Content-Type"]


def test_once_for_as_many_as_ask() -> None:
    app = Counted()
    assert {app.get() for _ in range(1000)} == {("1", "text")}
    assert app.get("openmetrics") == ("2", "openmetrics")
    assert app.get() == ("1", "text")
    app.version += 1
    assert {app.get() for _ in range(10)} == {("3", "text")}


def test_no_answer_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    app, now = Counted(), [0.0]
    monkeypatch.setattr(answers.time, "monotonic", lambda: now[0])
    seen = []
    for now[0] in (0.0, answers.SECONDS, answers.SECONDS + 0.1, 2 * answers.SECONDS):
        seen.append(app.get()[0])
    assert seen == ["1", "1", "2", "2"]


def test_strangers_fill_no_memory() -> None:
    app = Counted()
    for number in range(1000):
        app.get(f"kind/{number}")
    assert len(app.front._kept) <= answers._MOST
