"""Commands that use a trained net: what it says of images, and how fast."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from trainer.cli_options import AsJson, Device

SOME_UNREADABLE = 1  # exit code: the others were answered

Dtype = Annotated[str, typer.Option(metavar="float32|bf16|fp16", help="Number format of the net.")]


def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGES...", help="JPEG, PNG, ... files.")],
    budget: Annotated[
        str, typer.Option(metavar="MUL-ADDS", help="Stop early: Mul-Adds an image on average, as 9M or 1.2G.")
    ] = "",
    threshold: Annotated[float | None, typer.Option(help="Stop early at this confidence, whatever the exit.")] = None,
    batch: Annotated[int, typer.Option(help="Images that run together.")] = 1,
    dtype: Dtype = "float32",
    compiled: Annotated[
        bool, typer.Option("--compile", help="torch.compile, which pays for many images: the first ones wait for it.")
    ] = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Class, confidence, exit taken and time of every image. Exit code 1 where an image could not be read."""
    from trainer.evaluation import predict as prediction
    from trainer.evaluation.trained_net import read_trained_net
    from trainer.models.fold import inference_dtype
    from trainer.run.distributed import choose_device

    trained = read_trained_net(run, choose_device(device, 0))
    thresholds, meaning = prediction.thresholds_of(run, trained, budget, threshold)
    said = prediction.predict(trained, images, thresholds, batch=batch, dtype=inference_dtype(dtype), compiled=compiled)
    console, unreadable, rows = Console(highlight=False, soft_wrap=True), 0, []
    if not as_json:
        console.print(f"{len(images)} images; {meaning}", markup=False)
    for row in said:
        rows.append(asdict(row))
        unreadable += bool(row.error)
        if row.error:
            print(f"earlybird: {row.image}: {row.error}", file=typer.get_text_stream("stderr"))
        elif not as_json:
            console.print(
                f"{row.class_name:20} {row.confidence:6.1%}  exit {row.exit} of {trained.net.num_exits}  "
                f"{row.milliseconds:7.2f} ms  {row.image}",
                markup=False,
            )
    if as_json:
        print(json.dumps({"run": str(run), "thresholds": thresholds, "meaning": meaning, "predictions": rows}))
    if unreadable:
        raise typer.Exit(SOME_UNREADABLE)
