"""The command that measures what the metrics endpoint costs."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from trainer.cli_options import AsJson, Device, RecipeName, Settings


def exporter(
    recipe: RecipeName = "demo",
    settings: Settings = None,
    batch: Annotated[int, typer.Option(help="Images that an iteration loads (two updates).")] = 64,
    rounds: Annotated[int, typer.Option(min=4, help="Rounds; in each, either side runs once.")] = 40,
    seconds: Annotated[float, typer.Option(min=0.01, help="Of either side in every round, at least.")] = 1.0,
    every: Annotated[float, typer.Option(min=0.01, help="Seconds between two scrapes.")] = 1.0,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Images per second of the training loop with the metrics endpoint, scraped, and without it, in turns."""
    from trainer.benchmark.exporter import benchmark_exporter
    from trainer.config import resolve
    from trainer.run.distributed import take_device

    config, chosen = resolve(recipe, settings or []), take_device(device, 0)
    with Console(stderr=True).status("starting") as status:
        found = benchmark_exporter(
            config,
            num_images=batch,
            rounds=rounds,
            seconds=seconds,
            every=every,
            device=chosen,
            progress=status.update,
        )
    if as_json:
        print(json.dumps(found))
        return
    where = found["hardware"]
    print(
        f"{recipe}, {batch} images an iteration, {where['device']}, {where['threads']} threads ({where['cpu']}, load "
        f"{where['load_average']:.1f}); {rounds} rounds of {found['iterations']} iterations a side, a scrape each "
        f"{every:g} s"
    )
    for row in found["rows"]:
        print(f"{row['side']:>4}  {row['images_per_second']:,.1f} images/s  {row['p20']:,.1f} to {row['p80']:,.1f}")
    for what, name in (("images/s", "change"), ("processor time per image", "cpu_change")):
        print(f"{what}: {100 * found[name]:+.2f} % +- {100 * found[f'{name}_error']:.2f} (median, standard error)")
    print(
        f"one scrape: {1e3 * found['scrape_seconds']:.2f} ms of processor time for {found['scrape_bytes']:,} bytes, "
        f"{100 * found['scrape_seconds'] / every:.2f} % of a core"
    )
