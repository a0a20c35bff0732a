"""One setting by its dotted name: `--set meta.interval=10` on a frozen tree of dataclasses."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
LARGEST = 2**63


def with_data(data: str, settings: Sequence[str] | None) -> list[str]:
    """The settings, and those that read `data` instead of the recipe's own images; "" leaves them as they are."""
    return ["data.source=auto", *(settings or []), f"data.path={data}"] if data else list(settings or [])


def with_origin(run: Path | None, settings: Sequence[str] | None) -> list[str]:
    """The settings, and the one that begins with the net of the run in a folder; None leaves them as they are."""
    return [*(settings or []), *([f"origin.run={run.expanduser().absolute()}"] if run is not None else [])]


def apply_settings(config: T, settings: list[str]) -> T:
    """A copy of `config` with every `group.field=value` applied together, types and ranges checked.

    Raises ValueError for an unknown name (with the nearest known one), a value of the wrong type, or values that the
    dataclass refuses.
    """
    known = setting_names(config)
    texts: dict[str, str] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        name = name.strip()
        if not equals:
            raise ValueError(f"--set {setting}: expected group.field=value, for example --set meta.interval=10")
        if name not in known:
            raise ValueError(f"unknown setting {name!r}{nearest(name, list(known))} (earlybird show RECIPE lists them)")
        texts[name] = text.strip()
    return _replaced(config, "", texts)


def setting_names(config: Any, prefix: str = "") -> dict[str, Any]:
    """Every dotted setting name of a config and its value, in order."""
    names: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            names |= setting_names(value, f"{prefix}{field.name}.")
        else:
            names[f"{prefix}{field.name}"] = value
    return names


def from_dict(kind: type[T], values: dict[str, Any]) -> T:
    """A dataclass from plain values (JSON), as dataclasses.asdict wrote them; unknown names and values of another kind
    are refused with a ValueError."""
    if not isinstance(values, dict):
        raise ValueError(f"a saved {kind.__name__} is {values!r}; it must be an object of settings by name")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(values) - set(hints))
    if unknown:
        raise ValueError(f"unknown setting {unknown[0]} in a saved {kind.__name__}; was it written by another version?")
    built: dict[str, Any] = {}
    for name, value in values.items():
        hint = hints[name]
        if dataclasses.is_dataclass(hint):
            built[name] = from_dict(typing.cast(type, hint), value)
        else:
            built[name] = _typed(name, hint, value)
    return kind(**built)


def _typed(name: str, hint: Any, value: Any) -> Any:
    """A JSON value as one of the annotated type; ValueError where it is of another."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        if value in args:
            return value
    elif origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _typed(name, next(a for a in args if a is not type(None)), value)
    elif origin is tuple:
        if isinstance(value, list | tuple):
            kinds = [args[0]] * len(value) if len(args) == 2 and args[1] is Ellipsis else list(args)
            if len(kinds) == len(value):
                return tuple(_typed(name, kind, part) for kind, part in zip(kinds, value, strict=True))
    elif hint is float:
        if type(value) in (int, float):
            return _bounded(name, value)
    elif type(value) is hint:
        return _bounded(name, value) if hint is int else value
    raise ValueError(f"{name} is {value!r} in what was saved; it must be {getattr(hint, '__name__', hint)}")


def _replaced(config: Any, prefix: str, texts: dict[str, str]) -> Any:
    """One dataclass built once with all that changes in it, so that values which only fit together are accepted."""
    hints = typing.get_type_hints(type(config))
    changes = {}
    for field in dataclasses.fields(config):
        name, value = f"{prefix}{field.name}", getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = _replaced(value, f"{name}.", texts)
        elif name in texts:
            changes[field.name] = parse(name, hints[field.name], texts[name])
    return dataclasses.replace(config, **changes)


def nearest(name: str, known: list[str]) -> str:
    """`; did you mean X?` for a mistyped name, or nothing where none is near."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]}?" if close else ""


def parse(name: str, hint: Any, text: str) -> Any:
    """`text` as a value of the annotated type; ValueError naming what is allowed."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        for choice in args:
            if text == str(choice):
                return choice
        choices = " | ".join(str(choice) for choice in args)
        raise ValueError(f"{name} is {text!r}; it must be one of {choices}{nearest(text, [str(a) for a in args])}")
    if origin in (typing.Union, types.UnionType):
        if text.lower() in ("none", "null") and type(None) in args:
            return None
        return parse(name, next(a for a in args if a is not type(None)), text)
    if origin is tuple:
        parts = [part.strip() for part in text.strip("()[]").split(",") if part.strip()]
        kinds = [args[0]] * len(parts) if len(args) == 2 and args[1] is Ellipsis else list(args)
        if len(parts) != len(kinds):
            raise ValueError(f"{name} is {text!r}; it takes {len(kinds)} values separated by commas")
        return tuple(parse(name, kind, part) for kind, part in zip(kinds, parts, strict=True))
    if hint is bool:
        if text.lower() in ("true", "yes", "on", "1"):
            return True
        if text.lower() in ("false", "no", "off", "0"):
            return False
        raise ValueError(f"{name} is {text!r}; it must be true or false")
    if hint in (int, float):
        try:
            value = hint(text.replace("_", "")) if hint is int else float(text)
        except ValueError:
            kind = "a whole number" if hint is int else "a number"
            raise ValueError(f"{name} is {text!r}; it must be {kind}") from None
        return _bounded(name, value)
    return text


def _bounded(name: str, value: float) -> float:
    """A number that 64 bits hold, no NaN among them: no comparison refuses one."""
    if not -LARGEST < value < LARGEST:
        raise ValueError(f"{name} is {value:.9g}; it must be a finite number, below 2^63")
    return value
