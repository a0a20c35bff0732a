"""Words of a command as bash reads them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping


def quoted(text: str) -> str:
    """`text` as one word that bash takes as it is; shellcheck takes a bare comma in an array for a slip."""
    word = shlex.quote(text)
    return f"'{text}'" if "," in text and word == text else word


def array(name: str, words: Iterable[str], *expanded: str) -> str:
    """`name=( ... )`, an option and its value on one line; `expanded` are bash's own words at its end."""
    lines: list[str] = []
    for word in words:
        follows = lines and lines[-1].startswith("--") and " " not in lines[-1] and "=" not in lines[-1]
        if follows and not word.startswith("--"):
            lines[-1] += f" {quoted(word)}"
        else:
            lines.append(quoted(word))
    inside = "".join(f"  {line}\n" for line in (*lines, *expanded))
    return f"{name}=(\n{inside})"


def exports(variables: Mapping[str, str]) -> list[str]:
    """A line each, names in order."""
    return [f"export {name}={quoted(value)}" for name, value in sorted(variables.items())]
