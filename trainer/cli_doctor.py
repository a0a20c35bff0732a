"""The command that looks a machine, or a cluster's nodes, over before a run begins."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from trainer.cli_options import AsJson, Data, Device, Settings
from trainer.settings import with_data


def doctor(
    recipe: Annotated[str, typer.Argument(metavar="[RECIPE]", help="What is to be trained.")] = "demo",
    data: Data = "",
    run: Annotated[
        Path | None, typer.Option("--run", "--run-folder", metavar="FOLDER", help="Default runs/RECIPE.")
    ] = None,
    settings: Settings = None,
    device: Device = "auto",
    target: Annotated[str, typer.Option(help="Ask slurm | kubernetes | skypilot | local too.")] = "",
    nodes: Annotated[int, typer.Option(min=1, help="Machines that its job would have.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of each.")] = 0,
    site: Annotated[
        str, typer.Option(metavar="FILE|NAME", help="Profile; ~/.config/earlybird/site.toml if there.")
    ] = "",
    with_forecast: Annotated[
        bool, typer.Option("--forecast", help="Measure 30 steps: memory, images/s, hours.")
    ] = False,
    batch: Annotated[
        int, typer.Option(min=0, help="Images an iteration of the forecast; 0: the recipe's, on a CPU at most 64.")
    ] = 0,
    price: Annotated[
        float, typer.Option("--price-per-gpu-hour", min=0, help="For the forecast's cost; of a CPU process as well.")
    ] = 0.0,
    as_json: AsJson = False,
) -> None:
    """Look over what a run needs: each line pass, warn or fail, with what to do about it.

    Of this machine; under torchrun of every node, and of the network between them. Exit code 1 where a line fails.
    """
    from deploy.site import read_site
    from trainer.config import resolve
    from trainer.doctor.examination import Asked, examine
    from trainer.doctor.finding import worst

    if (batch or price) and not with_forecast:
        raise ValueError(f"{'--batch' if batch else '--price-per-gpu-hour'} is for the forecast; add --forecast")
    if (nodes > 1 or gpus) and not target:
        raise ValueError("--nodes and --gpus are of a cluster's job; add --target slurm, kubernetes or skypilot")
    config = resolve(recipe, with_data(data, settings))
    asked = Asked(
        run=run or Path("runs") / recipe,
        device=device,
        target=target,
        nodes=nodes,
        gpus=gpus,
        site=read_site(site),
        with_forecast=with_forecast,
        batch=batch,
        price=price,
    )
    errors = Console(stderr=True)
    with errors.status("doctor") as status:
        found = examine(config, asked, status.update)
    if os.environ.get("RANK", "0") == "0":
        if as_json:
            print(json.dumps({"state": worst(found), "lines": [asdict(finding) for finding in found]}))
        else:
            width = max(len(finding.subject) for finding in found)
            for finding in found:
                print(f"{finding.state}  {finding.subject:{width}}  {finding.said}")
                if finding.remedy:
                    print(f"      {'':{width}}  -> {finding.remedy}")
            print(" ".join(f"{sum(f.state == state for f in found)} {state}" for state in ("pass", "warn", "fail")))
    if worst(found) == "fail":
        raise typer.Exit(1)
