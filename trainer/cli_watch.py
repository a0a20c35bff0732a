"""The command that follows a run from outside."""

from __future__ import annotations

from typing import Annotated

import typer

from trainer.cli_options import AsJson


def watch(
    target: Annotated[str, typer.Argument(metavar="RUN|URL", help="A run folder, or http://HOST:PORT of its metrics.")],
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option(help="One look.")] = False,
    ca: Annotated[str, typer.Option(metavar="FILE", help="Authority of an endpoint that speaks HTTPS.")] = "",
    as_json: AsJson = False,
) -> None:
    """Follow a running training in the terminal: progress, time left, exits as bars, throughput.

    The run needs a metrics endpoint: start it with --set telemetry.port=9400.
    """
    from trainer.telemetry.watch import watch as follow

    follow(target, every=every, once=once, as_json=as_json, ca=ca)
