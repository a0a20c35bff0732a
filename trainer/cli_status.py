"""The command that says how a run stands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from trainer.cli_options import AsJson


def status(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    as_json: AsJson = False,
) -> None:
    """How a run stands: how far it is, what its time went into, its newest checkpoint and the hash of its weights."""
    from trainer.run.status import run_status

    result = run_status(run)
    print(json.dumps(result) if as_json else "\n".join(_lines(result)))


def _lines(result: dict[str, Any]) -> list[str]:
    lines = [
        f"{result['state']}: {result['recipe']}, epoch {result['epoch']:.2f}, iteration {result['step']}, "
        f"{result['images_seen']:,} images, {result['restarts']} restarts"
    ]
    if result["goodput_ratio"] is not None:
        lost = (f"{cause.replace('_', ' ')} {s:.0f} s" for cause, s in result["badput_seconds"].items() if s >= 0.5)
        lines.append(f"goodput {100 * result['goodput_ratio']:.1f} %; the rest: {', '.join(lost) or 'nothing'}")
    if result["last_checkpoint"]:
        last = result["last_checkpoint"]
        lines.append(f"newest checkpoint {last['folder']}, {last['age_seconds']:.0f} s old")
        lines.append(f"weights sha256 {result['weights_sha256']}")
    return lines
