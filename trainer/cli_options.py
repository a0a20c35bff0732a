"""Options that several commands share, and how they become settings."""

from __future__ import annotations

from typing import Annotated

import typer

RecipeName = Annotated[str, typer.Argument(metavar="RECIPE", help="A name that `earlybird recipes` lists.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="GROUP.FIELD=VALUE", help="Override a setting; may be repeated.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
Device = Annotated[str, typer.Option(help="auto | cpu | cuda")]
Data = Annotated[str, typer.Option(metavar="PATH", help="Image folder, archive or prepared set.")]


def with_data(data: str, settings: list[str] | None) -> list[str]:
    """The settings, and those that read `data` instead of the recipe's own images; "" leaves them as they are."""
    return ["data.source=auto", *(settings or []), f"data.path={data}"] if data else list(settings or [])
