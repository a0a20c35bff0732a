"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated

import typer

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A name that `earlybird recipes` lists.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="GROUP.FIELD=VALUE", help="Override a setting; may be repeated.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Device = Annotated[str, typer.Option(help="auto | cpu | cuda")]
Data = Annotated[str, typer.Option(metavar="PATH", help="Image folder, archive or prepared set.")]


def refuse_given(context: typer.Context, allowed: Collection[str], where: str) -> None:
    """ValueError for options of a command line, but those `allowed` (by their parameters' names), which have no effect
    `where`; arguments are no options."""
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.param_type_name == "option"
        and parameter.name not in allowed
        and _is_given(context, parameter.name)
    ]
    if given:
        has, them = ("has", "it") if len(given) == 1 else ("have", "them")
        raise ValueError(f"{', '.join(given)} {has} no effect {where}; leave {them} out")


def _is_given(context: typer.Context, name: str | None) -> bool:
    source = context.get_parameter_source(name) if name else None
    return source is not None and source.name == "COMMANDLINE"
