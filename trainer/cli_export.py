"""Commands that bring nets in from elsewhere and take them out."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from trainer.cli_options import AsJson, Settings, with_data


def import_checkpoint(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint of L2W-DEN, MSDNet or RANet.")],
    recipe: Annotated[str, typer.Option(metavar="RECIPE", help="The recipe of the net that it holds.")],
    run: Annotated[Path, typer.Option("--run", "--run-folder", metavar="FOLDER", help="Run folder to write.")],
    data: Annotated[
        str, typer.Option(metavar="PATH", help="The images it was trained on: names the classes, and scores it later.")
    ] = "",
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Make a run folder of a published checkpoint, for evaluate, predict and export; runs no code of the file."""
    from dataloading.datasets.open import open_dataset
    from trainer.config import resolve
    from trainer.import_checkpoint import import_checkpoint as import_file
    from trainer.telemetry.progress_bar import ProgressBar

    config = resolve(recipe, with_data(data, settings))
    classes: tuple[str, ...] = ()
    fingerprint = None
    if data:
        with closing(ProgressBar()) as progress:
            images = open_dataset(config.data, config.seed, progress=progress)
        classes, fingerprint = images.classes, images.fingerprint
    found = import_file(file, config, run, classes, fingerprint)
    if as_json:
        print(json.dumps(found))
        return
    where = f"{found['key']!r} of {file}" if found["key"] else str(file)
    print(
        f"imported {found['tensors']} tensors ({where}) as {recipe}, {found['num_classes']} classes: {run}\n"
        f"Next: earlybird evaluate {run}{'' if data else ' --data PATH'}"
    )
