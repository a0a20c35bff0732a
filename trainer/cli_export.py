"""Commands that bring nets in from elsewhere and take them out."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from trainer.cli_options import AsJson, Settings
from trainer.settings import with_data


def import_checkpoint(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A checkpoint of L2W-DEN, MSDNet or RANet.")],
    recipe: Annotated[str, typer.Option(metavar="RECIPE", help="The recipe of the net that it holds.")],
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", "--run-folder", metavar="FOLDER", help="Run folder to write; default runs/RECIPE-imported."
        ),
    ] = None,
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
    run = run or Path("runs") / f"{recipe}-imported"
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


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    kind: Annotated[str, typer.Option("--format", metavar="onnx|torch", help="ONNX models, or torch.export programs.")],
    last_exit: Annotated[
        int, typer.Option("--exit", min=0, help="The last exit to export, counted from 1; 0: all.")
    ] = 0,
    out: Annotated[Path | None, typer.Option(metavar="FOLDER", help="Default RUN/export-FORMAT.")] = None,
    data: Annotated[str, typer.Option(metavar="PATH", help="Images to check on, if the run's have moved.")] = "",
    images: Annotated[int, typer.Option(help="Validation images that check the graphs.")] = 100,
    as_json: AsJson = False,
) -> None:
    """Write a run's net for a server: batch-norms folded, one graph a block, checked against the net on real images."""
    from rich.console import Console
    from rich.table import Table

    from trainer.export.command import export_run

    with Console(stderr=True).status("reading the run") as status:
        manifest = export_run(
            run, kind, last_exit=last_exit, out=out, data=data, num_images=images, progress=status.update
        )
    if as_json:
        print(json.dumps(manifest))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{manifest['folder']}: {len(manifest['exits'])} graphs and manifest.json, checked on "
        f"{manifest['checked_on_images']} images",
        markup=False,
    )
    table = Table("exit", "file", "takes", "Mul-Adds M", "largest difference of a logit")
    for row in manifest["exits"]:
        takes = ", ".join(given["name"] for given in row["inputs"][:3]) + (", ..." if len(row["inputs"]) > 3 else "")
        difference = f"{row['largest_difference']:.1e}"
        table.add_row(str(row["exit"]), row["file"], takes, f"{row['mul_adds'] / 1e6:.2f}", difference)
    console.print(table)
    if not manifest["thresholds"]:
        console.print("No thresholds in the manifest: earlybird evaluate RUN sets them, for the whole net.")
