"""Commands about images: prepare a set, show what a source holds, trace what training will see of it."""

from __future__ import annotations

import json
import re
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from trainer.cli_options import AsJson, Data, RecipeName, Settings
from trainer.settings import with_data

data_app = typer.Typer(help="Look at images before training on them.", no_args_is_help=True)

_BYTES = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_SHOWN = 10  # images or classes that a person is shown by name; --json has all


def prepare(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="Image folder, archive or any other source.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="Folder for the prepared set.")],
    verify: Annotated[str, typer.Option(metavar="header|full", help="full decodes every image.")] = "full",
    index_only: Annotated[bool, typer.Option("--index-only", help="Write no shards; SRC must stay there.")] = False,
    shortest_side: Annotated[int, typer.Option(help="Shrink what is larger, pixels; 0 leaves it.")] = 0,
    longest_side: Annotated[int, typer.Option(help="Shrink what is larger, pixels; 0 leaves it.")] = 0,
    quality: Annotated[int, typer.Option(help="JPEG quality of what has to be encoded again.")] = 95,
    shard_size: Annotated[str, typer.Option(metavar="BYTES", help="About the size of a shard.")] = "512MiB",
    threads: Annotated[int, typer.Option(help="Reading threads; 0 takes four a core.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Check every image of SRC once and pack it for training; goes on where an earlier run of the same was stopped."""
    from dataloading.prepare import PrepareOptions
    from dataloading.prepare import prepare as prepare_set
    from trainer.telemetry.progress_bar import ProgressBar

    options = PrepareOptions(
        cast(Any, verify), index_only, num_bytes(shard_size), shortest_side, longest_side, quality, threads
    )
    try:
        with closing(ProgressBar()) as progress:
            result = prepare_set(source, destination, options, progress=progress)
    except KeyboardInterrupt:
        print(f"earlybird: {_stopped(destination)}", file=typer.get_text_stream("stderr"))
        raise typer.Exit(130) from None
    if as_json:
        print(json.dumps(asdict(result)))
    else:
        Console(highlight=False, soft_wrap=True).print(_prepared(destination, asdict(result)), markup=False)


def num_bytes(text: str) -> int:
    """512MB, 1.5GiB or a plain number, as bytes. Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]?I?B|)", text.strip().upper())
    if found is None or found[2] not in _BYTES | {"B": 1}:
        raise ValueError(f"--shard-size is {text!r}; give a number of bytes, or one with KB, MB, GB, KiB, MiB or GiB")
    return int(float(found[1]) * _BYTES.get(found[2], 1))


def _stopped(destination: Path) -> str:
    from dataloading.datasets.prepared import MANIFEST, WORK

    if (destination / MANIFEST).is_file():
        return f"stopped, but {destination} is whole"
    num_done = len(list((destination / WORK).glob("*-*.json")))
    kept = f"{num_done} finished parts are kept in {destination}" if num_done else "no part was finished yet"
    return f"stopped; {kept}: give the same command again to go on"


def _prepared(destination: Path, result: dict[str, Any]) -> str:
    """What a person wants to know of a finished set."""
    from dataloading.datasets.contents import reasons
    from dataloading.datasets.prepared import MANIFEST
    from dataloading.quarantine import read_quarantine

    manifest = json.loads((destination / MANIFEST).read_bytes())
    num_shards = len(manifest["shards"])
    where = (
        f"{num_shards} shard{'s' * (num_shards > 1)}" if num_shards else "an index of images that stay where they are"
    )
    pace = f"{result['seconds']:.1f} s, {result['images_per_second']:,.0f} images/s"
    lines = [
        f"prepared {destination}: {where}, {_size(result['bytes'])} of images"
        + (f" ({pace})" if result["images_per_second"] else " (nothing was left to do)"),
        f"  train {manifest['num_train']:,}  val {manifest['num_val']:,}  classes {result['num_classes']:,}",
    ]
    if manifest["num_converted"]:
        lines.append(f"  encoded again {manifest['num_converted']:,}: {destination / 'converted.jsonl'}")
    bad = read_quarantine(destination / "quarantine.jsonl")
    if bad:
        lines.append(f"left out {len(bad):,} ({_counts(reasons(bad))}): {destination / 'quarantine.jsonl'}")
        lines += [f"  {image.reason:13} {image.name}  {image.detail}".rstrip() for image in bad[:_SHOWN]]
        lines += [f"  and {len(bad) - _SHOWN:,} more"] if len(bad) > _SHOWN else []
    return "\n".join([*lines, f"Next: earlybird train RECIPE --data {destination}"])


@data_app.command()
def show(
    source: Annotated[
        str, typer.Argument(metavar="PATH|RECIPE", help="Images on disk, or a recipe's (./NAME: a path).")
    ],
    data: Data = "",
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Show what a source holds: splits, classes, sizes, oddities, and what is left out. Reads headers, not images."""
    from dataloading.datasets.contents import contents
    from dataloading.datasets.open import open_dataset, open_splits, source_kind
    from trainer.config import resolve
    from trainer.recipes.catalogue import recipe_names
    from trainer.telemetry.progress_bar import ProgressBar

    with closing(ProgressBar()) as progress:
        if source in recipe_names():
            config = resolve(source, with_data(data, settings))
            images = open_dataset(config.data, config.seed, progress=progress)
            kind = (
                config.data.source if config.data.source != "auto" else source_kind(Path(config.data.path).expanduser())
            )
            splits = {"train": images.train, "heldout": images.heldout, "val": images.val}
            name, quarantined = images.name, images.quarantined
        elif data or settings:
            raise ValueError(
                f"--data and --set go with a recipe, and {source!r} is none (earlybird recipes lists them)"
            )
        else:
            path = Path(source).expanduser().absolute()
            if not path.exists():
                raise ValueError(f"{source!r} is neither a path nor a recipe; earlybird recipes lists the recipes")
            found = open_splits(path, progress=progress)
            kind, splits = source_kind(path), {"train": found.train, "val": found.val}
            name, quarantined = found.name, found.quarantined
    held = {"name": name, "kind": kind, **contents(splits, quarantined)}
    if as_json:
        print(json.dumps(held))
    else:
        _show(held)


def _show(held: dict[str, Any]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    classes = ", ".join(held["classes"][:_SHOWN]) + (", ..." if held["num_classes"] > _SHOWN else "")
    console.print(f"{held['name']} ({held['kind']}): {held['num_images']:,} images", markup=False)
    console.print(f"{held['num_classes']:,} classes: {classes}", markup=False)
    table = Table("split", "images", "a class", "bytes", "width*", "height*", "unusual")
    for split, row in held["splits"].items():
        per_class = row["images_by_class"].values()
        table.add_row(
            split,
            f"{row['num_images']:,}",
            f"{min(per_class):,} to {max(per_class):,}",
            _size(row["bytes"]),
            *("-".join(str(side[q]) for q in ("min", "median", "max")) if side else "-" for side in _sides(row)),
            _counts(row["flags"]) or "-",
        )
    console.print(table)
    console.print("* smallest-median-largest, pixels")
    if held["num_quarantined"]:
        console.print(f"left out {held['num_quarantined']:,} ({_counts(held['quarantined'])}):", markup=False)
        for image in held["quarantined_images"][:_SHOWN]:
            console.print(f"  {image['reason']:13} {image['split']}  {image['name']}", markup=False)
    if held["kind"] not in ("prepared", "demo", "synthetic"):
        console.print("Only headers were read; earlybird prepare SRC DST decodes every image.")


def _sides(row: dict[str, Any]) -> tuple[dict[str, int] | None, dict[str, int] | None]:
    return row["width"], row["height"]


@data_app.command()
def trace(
    recipe: RecipeName,
    epoch: Annotated[int, typer.Option(help="Counted from 0.")] = 0,
    steps: Annotated[str, typer.Option(metavar="A:B", help="Steps A to B-1 of those that begin in the epoch.")] = "0:1",
    data: Data = "",
    settings: Settings = None,
    rank: Annotated[int, typer.Option(help="Whose share of the batches, counted from 0.")] = 0,
    world_size: Annotated[int, typer.Option(help="Ranks of the run.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Print which images training will see in which order, and how they are cut and mirrored; nothing is decoded."""
    from dataloading.datasets.open import open_dataset
    from dataloading.stream import Stream
    from trainer.config import resolve
    from trainer.telemetry.progress_bar import ProgressBar

    config = resolve(recipe, with_data(data, settings))
    if world_size < 1 or not 0 <= rank < world_size:
        raise ValueError(f"--rank is {rank} of --world-size {world_size}; ranks go from 0 to one below a positive size")
    if not 0 <= epoch < config.run.epochs:
        raise ValueError(
            f"--epoch is {epoch}; {recipe} trains epochs 0 to {config.run.epochs - 1} (run.epochs {config.run.epochs})"
        )
    with closing(ProgressBar()) as progress:
        images = open_dataset(config.data, config.seed, progress=progress)
    optim = config.optim
    stream = Stream(images.train, config.data, config.seed, optim.update_batch, rank, world_size, optim.accumulation)
    first = stream.first_iteration(epoch)
    num_steps = stream.first_iteration(epoch + 1) - first
    wanted = _steps(steps, epoch, num_steps)
    traced = {
        "recipe": config.recipe,
        "data": images.name,
        "data_fingerprint": images.fingerprint,
        "seed": config.seed,
        "epoch": epoch,
        "num_steps": num_steps,
        "first_iteration": first,
        "rank": rank,
        "world_size": world_size,
        "loaded_batch": stream.loaded_batch,
        "steps": [
            {"step": step, "iteration": first + step, "samples": [_sample(row) for row in stream.trace(first + step)]}
            for step in wanted
        ],
    }
    if as_json:
        print(json.dumps(traced))
        return
    print(
        f"epoch {epoch}: {num_steps} steps of {stream.loaded_batch} images from iteration {first}; "
        f"rank {rank} of {world_size}, seed {config.seed}, data {images.fingerprint[:12]}\n"
        f"{'step':>6} half {'id':>8} flip  crop: top left height width  name"
    )
    for batch in cast(list[dict[str, Any]], traced["steps"]):
        for sample in batch["samples"]:
            crop = " ".join(f"{value:5}" for value in sample["crop"])
            flip = "yes" if sample["flip"] else "no"
            print(f"{batch['step']:6} {sample['half']:4} {sample['id']:8} {flip:4}  {crop}  {sample['name']}")


def _sample(row: dict[str, Any]) -> dict[str, Any]:
    """id: row of the training split, as Batch.ids has it; crop: [top, left, height, width] in stored pixels."""
    return {"id": row["row"], **{key: row[key] for key in ("epoch", "half", "label", "name", "crop", "flip")}}


def _steps(text: str, epoch: int, num_steps: int) -> range:
    found = re.fullmatch(r"(\d+):(\d+)", text.strip())
    if found is None or int(found[1]) >= int(found[2]):
        raise ValueError(f"--steps is {text!r}; give A:B with A below B, for example 0:2 for the first two steps")
    if int(found[2]) > num_steps:
        raise ValueError(f"--steps is {text}, but epoch {epoch} has {num_steps} steps; 0:{num_steps} is all of them")
    return range(int(found[1]), int(found[2]))


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _size(size: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size >= scale:
            return f"{size / scale:,.1f} {unit}"
    return f"{size} bytes"
