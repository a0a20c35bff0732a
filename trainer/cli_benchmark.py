"""Commands that measure: each prints one table, or one JSON object with hardware and versions."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from trainer.cli_options import AsJson, Data, Device, Settings
from trainer.settings import with_data

if TYPE_CHECKING:
    from dataloading.index import Index

benchmark_app = typer.Typer(help="Measure parts of the training on this machine.", no_args_is_help=True)

Batch = Annotated[int, typer.Option(help="Images that an iteration loads (two updates); 0: 64, on a GPU 256.")]
Png = Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw the rows.")]
Rounds = Annotated[int, typer.Option(min=1, help="Rounds; in each, every side runs once.")]


@benchmark_app.command()
def loader(
    recipe: Annotated[str, typer.Argument(metavar="[RECIPE]", help="Whose data settings.")] = "demo",
    data: Data = "",
    settings: Settings = None,
    rounds: Rounds = 5,
    seconds: Annotated[float, typer.Option(min=0.01, help="Of every side in every round.")] = 2.0,
    images: Annotated[
        int, typer.Option(min=1, help="Training images to take, spread evenly; a rival needs copies.")
    ] = 4096,
    update_batch: Annotated[int, typer.Option(min=1, help="Images of an update; a batch is twice that.")] = 32,
    profile: Annotated[bool, typer.Option("--profile", help="Also where the loader's processor time goes.")] = False,
    ffcv_python: Annotated[
        str,
        typer.Option(
            metavar="PATH",
            envvar="EARLYBIRD_FFCV_PYTHON",
            help="Also FFCV: the Python interpreter of an environment that has it.",
        ),
    ] = "",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Images per second of the loader, of DALI's own file reader, torchvision's way, the decoder alone and FFCV."""
    import numpy as np

    from dataloading.benchmark import benchmark_loader
    from dataloading.datasets.open import open_dataset
    from dataloading.loader_profile import profile_loader
    from dataloading.stream import check_batch
    from trainer.config import resolve
    from trainer.run.distributed import take_device
    from trainer.telemetry.progress_bar import ProgressBar

    config = resolve(recipe, with_data(data, settings))
    chosen = take_device(device, 0)
    if config.data.source == "synthetic":
        raise ValueError("data.source is synthetic: there is nothing to load; give --data PATH or the recipe demo")
    with closing(ProgressBar()) as progress:
        opened = open_dataset(config.data, config.seed, progress=progress)
    index = opened.train
    if len(index) > images:
        index = index.subset(np.linspace(0, len(index) - 1, images).astype(np.int64))
    check_batch(len(index), update_batch, 1, 1)
    try:
        result = benchmark_loader(
            config.data,
            index,
            name=opened.name,
            rounds=rounds,
            seconds=seconds,
            update_batch=update_batch,
            device=chosen,
            ffcv_python=ffcv_python,
        )
        if profile:
            result["profile"] = profile_loader(
                config.data, index, seconds=seconds, update_batch=update_batch, device=chosen
            )
    except RuntimeError as error:
        _blame_an_image(index, error)
        raise
    if as_json:
        print(json.dumps(result))
    else:
        _show_loader(result)


def _blame_an_image(index: Index, error: RuntimeError) -> None:
    """ValueError where one of the images cannot be decoded: the loader replaces it, the rivals stop at it."""
    from dataloading.header import BadImageError
    from dataloading.scan import Source, decode_rgb

    with Source(index) as source:
        for row in range(len(index)):
            try:
                decode_rgb(source.read(row))
            except BadImageError as bad:
                raise ValueError(
                    f"{index.name(row)} cannot be read ({bad.reason}), and what the loader is compared with stops at "
                    "such images; run earlybird prepare and measure the prepared set"
                ) from error


def _show_loader(result: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    data, hardware = result["data"], result["hardware"]
    console.print(
        f"{data['name']}: {data['images']:,} images of {data['mean_pixels'] / 1e3:,.0f} kilopixels on average, to "
        f"{data['image_size']} pixels, {data['loaded_batch']} a batch; {result['rounds']} rounds of "
        f"{result['seconds']:g} s; {hardware['cpu']}, {hardware['threads']} threads, {hardware['device']}",
        markup=False,
    )
    table = Table("loader", "images/s", "p20 to p80", "a core", "to earlybird")
    for row in result["rows"]:
        table.add_row(
            row["loader"],
            f"{row['images_per_second']:,.0f}",
            f"{row['p20']:,.0f} to {row['p80']:,.0f}",
            f"{row['images_per_second_per_core']:,.0f}",
            f"{row['ratio_to_earlybird']:.2f}",
        )
    console.print(table)
    if "profile" in result:
        table = Table("stage", "CPU us an image", "up to here", "images/s up to here", "cores busy")
        for row in result["profile"]["stages"]:
            table.add_row(
                row["stage"],
                f"{row['cpu_microseconds_per_image']:,.1f}",
                f"{row['cpu_microseconds_per_image_so_far']:,.1f}",
                f"{row['images_per_second_so_far']:,.0f}",
                f"{row['cores_busy']:.2f}",
            )
        console.print(table)


@benchmark_app.command()
def kernels(device: Device = "auto", rounds: Rounds = 20, png: Png = None, as_json: AsJson = False) -> None:
    """Time of each operation: as separate torch operations, by its reference and, on a GPU, by its kernel."""
    from kernels.bench import benchmark_kernels
    from trainer.benchmark.figure import bars
    from trainer.benchmark.hardware import hardware, versions
    from trainer.reporting.plots import write_png
    from trainer.run.distributed import take_device

    chosen = take_device(device, 0)
    machine, rows = hardware(chosen), benchmark_kernels(chosen, rounds)
    title = f"{machine['device']}, {machine['threads']} threads, torch {rows[0].torch}"
    if png is not None:
        drawn = [
            {
                "gigabytes_per_second": row.gigabytes_per_second,
                "p20": row.bytes / row.p80 / 1e9,
                "p80": row.bytes / row.p20 / 1e9,
            }
            for row in rows
        ]
        names = [f"{row.operation}, {row.case}: {row.side}" for row in rows]
        write_png(bars(drawn, names, title, "gigabytes_per_second", digits=2), png)
    if as_json:
        listed = [asdict(row) | {"gigabytes_per_second": row.gigabytes_per_second} for row in rows]
        print(json.dumps({"hardware": machine, "versions": versions(), "rounds": rounds, "rows": listed}))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{title} ({machine['cpu']}, load {machine['load_average']:.1f}); {rounds} rounds", markup=False)
    table = Table("operation", "side", "median ms", "p20 to p80", "GB/s", "case")
    for row in rows:
        low, middle, high = (1e3 * s for s in (row.p20, row.median_seconds, row.p80))
        table.add_row(
            row.operation,
            row.side,
            f"{middle:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{row.gigabytes_per_second:.2f}",
            row.case,
        )
    console.print(table)


@benchmark_app.command()
def step(
    recipe: Annotated[str, typer.Argument(metavar="[RECIPE]", help="Whose net and settings.")] = "demo",
    settings: Settings = None,
    batch: Batch = 0,
    rounds: Rounds = 5,
    with_compile: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Measure torch.compile, which takes minutes the first time.")
    ] = True,
    png: Png = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Cost of a training iteration: each lever alone and all together, then each way to learn the sample weights."""
    from trainer.benchmark.figure import bars
    from trainer.benchmark.step import benchmark_step
    from trainer.config import resolve
    from trainer.reporting.plots import write_png
    from trainer.run.distributed import take_device

    config, chosen, errors = resolve(recipe, settings or []), take_device(device, 0), Console(stderr=True)
    num_images = batch or (64 if chosen.type == "cpu" else 256)
    with errors.status("starting") as status:
        result = benchmark_step(
            config,
            num_images=num_images,
            rounds=rounds,
            with_compile=with_compile,
            device=chosen,
            progress=status.update,
        )
    hardware = result["hardware"]
    title = f"{recipe}, {num_images} images an iteration, {hardware['device']}, {hardware['threads']} threads"
    rows = result["rows"]
    if png is not None:
        names = [row["name"] + (f", {row['meta']}, interval {row['interval']}" if row["meta"] else "") for row in rows]
        write_png(bars(rows, names, title), png)
    if as_json:
        print(json.dumps(result))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{title} ({hardware['cpu']}, load {hardware['load_average']:.1f}); {rounds} rounds", markup=False)
    table = Table("side", "every", "images/s", "p20 to p80", "time", "peak MB", "whole")
    for row in rows:
        table.add_row(
            row["meta"] or row["name"],
            "" if row["interval"] is None else f"{row['interval']}{'*' * row['computed']}",
            f"{row['images_per_second']:,.1f}",
            f"{row['p20']:,.1f} to {row['p80']:,.1f}",
            f"{row['ratio_to_plain']:.2f}",
            "" if row["peak_memory_mb"] is None else f"{row['peak_memory_mb']:,.0f}",
            "" if row["memory_ratio"] is None else f"{row['memory_ratio']:.2f}",
        )
    console.print(table)
    plain = next(row["over"] for row in rows if row["name"] == "weighted")
    console.print(f"time: of an iteration over baseline's; of weighted and of what follows it over {plain}'s")
    if result["whole_batch_memory_mb"] is not None:
        console.print(
            f"whole: peak memory over that of an unweighted update with the whole batch, "
            f"{result['whole_batch_memory_mb']:,.0f} MB"
        )
    console.print("* computed from interval 1 and the weights without a meta step; online: one update, not two")
    for name, reason in result["slow"].items():
        console.print(f"all is without {name}: {reason}", markup=False)
    for name, reason in result["left_out"].items():
        console.print(f"{name} left out: {reason}", markup=False)


@benchmark_app.command("train")
def end_to_end(
    recipe: Annotated[str, typer.Argument(metavar="[RECIPE]", help="Whose net, images and settings.")] = "demo",
    data: Data = "",
    settings: Settings = None,
    batch: Batch = 0,
    rounds: Rounds = 3,
    seconds: Annotated[float, typer.Option(min=0.01, help="Of each side in every round, at least.")] = 20.0,
    png: Png = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Whole training iterations from real images: earlybird, what one would run without it, and the step alone."""
    from dataloading.datasets.open import open_dataset
    from trainer.benchmark.figure import bars
    from trainer.benchmark.train import benchmark_train
    from trainer.config import resolve
    from trainer.reporting.plots import write_png
    from trainer.run.distributed import take_device
    from trainer.telemetry.progress_bar import ProgressBar

    config, chosen, errors = resolve(recipe, with_data(data, settings)), take_device(device, 0), Console(stderr=True)
    with closing(ProgressBar()) as bar:
        images = open_dataset(config.data, config.seed, progress=bar)
    num_images = batch or (64 if chosen.type == "cpu" else 256)
    with errors.status("starting") as status:
        result = benchmark_train(
            config,
            images,
            num_images=num_images,
            rounds=rounds,
            seconds=seconds,
            device=chosen,
            progress=status.update,
        )
    hardware, rows = result["hardware"], result["rows"]
    title = f"{recipe} on {images.name}, {num_images} images an iteration, {hardware['device']}"
    if png is not None:
        write_png(bars(rows, [row["name"] for row in rows], title), png)
    if as_json:
        print(json.dumps(result))
        return
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{title}, {hardware['threads']} threads ({hardware['cpu']}, load {hardware['load_average']:.1f}); "
        f"{rounds} rounds of {seconds:g} s",
        markup=False,
    )
    table = Table("side", "images/s", "p20 to p80", "to usual", "to step", "waits for data", "peak MB")
    for row in rows:
        layout = f"{row['dtype']}{', channels-last' * row['channels_last']}{', compiled' * row['compile']}"
        meta = f"meta gradient {row['meta']} in every {row['interval']}. iteration" if row["meta"] else "unweighted"
        source = f"{row['loader']} loader" if row["loader"] else "one batch of noise, no loader"
        console.print(f"{row['name']}: {source}; {layout}; {meta}", markup=False)
        table.add_row(
            row["name"],
            f"{row['images_per_second']:,.1f}",
            f"{row['p20']:,.1f} to {row['p80']:,.1f}",
            f"{row['ratio_to_usual']:.2f}",
            f"{row['ratio_to_step']:.3f}",
            f"{row['data_wait_ratio']:.1%}",
            "" if row["peak_memory_mb"] is None else f"{row['peak_memory_mb']:,.0f}",
        )
    console.print(table)
