"""Commands that use a trained net: what it says of images, and how fast."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from trainer.cli_options import AsJson, Device, RecipeName, Settings

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
    from trainer.run.distributed import take_device

    trained = read_trained_net(run, take_device(device, 0))
    thresholds, meaning = prediction.thresholds_of(run, trained, budget, threshold)
    said = prediction.predict(trained, images, thresholds, batch=batch, dtype=inference_dtype(dtype), compiled=compiled)
    console, unreadable = Console(highlight=False, soft_wrap=True), 0
    rows: list[dict[str, Any]] = []
    for row in said:
        if not rows and not as_json:  # only now: what is refused is refused before the first one
            console.print(f"{len(images)} images; {meaning}", markup=False)
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


def inference(
    recipe: RecipeName = "demo",
    settings: Settings = None,
    batch: Annotated[
        int | None, typer.Option(help="Images that run together; default 32, on a GPU 256.", show_default=False)
    ] = None,
    batches: Annotated[int, typer.Option(help="Batches of the stream that early exit is measured on.")] = 8,
    rounds: Annotated[int, typer.Option(help="Rounds; in each, every side runs once.")] = 5,
    budgets: Annotated[
        str, typer.Option(metavar="Q,...", help="Exit ratios: the share that leaves at exit k goes with q^k.")
    ] = "0.25,0.5,0.75,1,1.5",
    dtype: Dtype = "float32",
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Also torch.compile, and early exit with it.")
    ] = False,
    png: Annotated[Path | None, typer.Option(metavar="FILE", help="Also draw the rows.")] = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Images per second of every exit with each lever, and with early exit, beside what its Mul-Adds promise."""
    from trainer.benchmark.figure import bars
    from trainer.benchmark.inference import benchmark_inference, exit_ratios
    from trainer.config import resolve
    from trainer.models.fold import inference_dtype
    from trainer.reporting.plots import write_png
    from trainer.run.distributed import take_device

    inference_dtype(dtype)
    config, ratios, chosen = resolve(recipe, settings or []), exit_ratios(budgets), take_device(device, 0)
    with Console(stderr=True).status("starting") as status:
        found = benchmark_inference(
            config,
            num_images=(256 if chosen.type == "cuda" else 32) if batch is None else batch,
            num_batches=batches,
            budgets=ratios,
            rounds=rounds,
            dtype=dtype,
            with_compile=compiled,
            device=chosen,
            progress=status.update,
        )
    title = f"{recipe}, {found['batch']} images a batch, {found['hardware']['device']}"
    if png is not None:
        write_png(bars(found["rows"], [_label(row) for row in found["rows"]], title), png)
    if as_json:
        print(json.dumps(found))
    else:
        _show_inference(found, title)


GROUPS = {
    "baseline": "Every exit of a batch, over baseline",
    "full": "Images leave a stream early, over full",
    "alone_full": "Images alone, over alone_full",
}


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _label(row: dict[str, Any]) -> str:
    return row["name"] if row["budget"] is None else f"{row['name']}, q {row['budget']:g}"


def _show_inference(found: dict[str, Any], title: str) -> None:
    console = Console(highlight=False, soft_wrap=True)
    where, rows = found["hardware"], found["rows"]
    best = next(row for row in rows if row["name"] == "full")
    console.print(
        f"{title}, {where['threads']} threads ({where['cpu']}, load {where['load_average']:.1f}); {found['rounds']} "
        f"rounds; early exit in {best['dtype']}, channels-last{', compiled' * best['compile']}, on a stream of "
        f"{found['batches']} batches",
        markup=False,
    )
    for over, what in GROUPS.items():
        alone = over == "alone_full"
        columns = ("ms an image",) if alone else ("images/s", "p20 to p80")
        promises = () if over == "baseline" else ("promised", "share")
        table = Table("side", *columns, "speed-up", *promises, title=what, title_justify="left")
        for row in (row for row in rows if row["over"] == over):
            rates = (_rate(row["images_per_second"]), f"{_rate(row['p20'])} to {_rate(row['p80'])}")
            table.add_row(
                _label(row),
                *((f"{row['milliseconds_per_image']:.2f}",) if alone else rates),
                f"{row['speed_up']:.2f}",
                *("-" if row[name] is None else f"{row[name]:.2f}" for name in promises),
            )
        console.print(table)
    for name, reason in found["left_out"].items():
        console.print(f"left out: {name} ({reason})", markup=False)
