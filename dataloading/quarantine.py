"""The list of images that were left out, and why."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Quarantined:
    """One image that cannot be used.

    name    as the source names it, relative to the source
    split   train | val
    label   name of its class
    reason  one of dataloading.header.REASONS; detail says more, for a person
    sha256  of its bytes, where they were read whole
    """

    name: str
    split: str
    label: str
    reason: str
    detail: str = ""
    sha256: str = ""


def to_lines(images: Iterable[Quarantined]) -> bytes:
    """One JSON object a line."""
    return "".join(json.dumps(asdict(image), ensure_ascii=True) + "\n" for image in images).encode()


def from_lines(lines: bytes) -> list[Quarantined]:
    return [Quarantined(**json.loads(line)) for line in lines.splitlines()]


def read_quarantine(path: Path) -> list[Quarantined]:
    """The list in a `quarantine.jsonl`."""
    return from_lines(path.read_bytes())
