"""Objects as text that kubectl reads as it was meant."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import yaml

# What no reader of YAML, of whatever version, takes for anything but itself; all else stands in double quotes.
_PLAIN = re.compile(r"-{0,2}[A-Za-z/]([-A-Za-z0-9_./:=,]*[A-Za-z0-9])?")
_WORDS = {"true", "false", "yes", "no", "on", "off", "y", "n", "null", "nan", "inf", "infinity"}
_OTHER_BREAKS = re.compile("[\r\x85\u2028\u2029]")  # which a block of lines would hand on as line feeds


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    plain = _PLAIN.fullmatch(text) and text.lower().lstrip("-") not in _WORDS
    lines = "\n" in text and not _OTHER_BREAKS.search(text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if plain else "|" if lines else '"')


_Dumper.add_representer(str, _text)


def to_yaml(objects: Iterable[dict[str, Any]]) -> str:
    """The objects as YAML documents, keys in the given order."""
    return yaml.dump_all(
        objects, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9, default_flow_style=False
    )
