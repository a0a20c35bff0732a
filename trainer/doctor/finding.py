"""One line of what the doctor finds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

State = Literal["pass", "warn", "fail"]
_WORST: tuple[State, ...] = ("fail", "warn", "pass")


@dataclass(frozen=True)
class Finding:
    """What was looked at, how it stands, what was seen, and what to do about it ("" where nothing needs to be done).

    values  the figures behind the words, for programs
    """

    subject: str
    state: State
    said: str
    remedy: str = ""
    values: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if (self.state == "pass") == bool(self.remedy):
            raise ValueError(f"{self.subject}: a line that is {self.state} has the remedy {self.remedy!r}")


Examination = Callable[[], Iterator[Finding]]


def examined(subject: str, look: Examination) -> list[Finding]:
    """What `look` finds; where it breaks off, the error is its last finding: one broken part hides no other."""
    found: list[Finding] = []
    try:
        found.extend(look())
    except Exception as error:
        said = " ".join(str(error).split()) or type(error).__name__
        found.append(Finding(subject, "fail", said, "mend what the message names; EARLYBIRD_TRACEBACK=1 shows more"))
    return found


def together(by_host: Sequence[tuple[str, Sequence[Finding]]]) -> list[Finding]:
    """Findings of several machines as one list: a line that all share stands once, others begin with their machine."""
    hosts = {host for host, _ in by_host}
    seen: dict[tuple[str, State, str], dict[str, Finding]] = {}
    for host, found in by_host:
        for finding in found:
            seen.setdefault((finding.subject, finding.state, finding.said), {})[host] = finding
    lines = []
    for told in seen.values():
        finding = next(iter(told.values()))
        lines.append(finding if told.keys() == hosts else replace(finding, said=f"{', '.join(told)}: {finding.said}"))
    return lines


def worst(findings: Sequence[Finding]) -> State:
    """fail where one is, else warn where one is, else pass."""
    states = set(itertools.chain((finding.state for finding in findings), ("pass",)))
    return next(state for state in _WORST if state in states)
