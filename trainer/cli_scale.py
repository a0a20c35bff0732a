"""Commands that measure the data path at its full size: a large index, a long stream."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Annotated

import typer

from trainer.cli_options import AsJson, Data, RecipeName, Settings
from trainer.settings import with_data


def index(as_json: AsJson = False) -> None:
    """Time an index and an epoch's order of 1,281,167 images, and a batch among 1e9 (no files behind either)."""
    from dataloading.scale import measure_scale

    result = measure_scale()
    if as_json:
        print(json.dumps(result))
        return
    small, many = result["imagenet"], result["many"]
    print(
        f"{small['rows']:,} images: index {small['index_bytes'] / 1e6:.0f} MB, opened in "
        f"{small['open_seconds'] * 1e3:.1f} ms; an epoch ordered in {small['epoch_order_seconds']:.3f} s; "
        f"{small['resident_bytes'] / 1e6:.0f} MB resident"
    )
    print(
        f"{many['rows']:,} images: a batch of {result['loaded_batch']} in {many['batch_seconds'] * 1e3:.2f} ms (worst "
        f"{many['worst_batch_seconds'] * 1e3:.2f}); {many['resident_bytes'] / 1e6:.1f} MB more resident"
    )


def memory(
    recipe: RecipeName,
    data: Data = "",
    settings: Settings = None,
    batches: Annotated[int, typer.Option(min=10, help="Training batches to load.")] = 10_000,
    update_batch: Annotated[int, typer.Option(min=1, help="Half a batch's images.")] = 8,
    as_json: AsJson = False,
) -> None:
    """Load many training batches and print the process's resident memory after each tenth of them."""
    from dataloading.benchmark import memory_growth
    from dataloading.datasets.open import open_dataset
    from trainer.config import resolve
    from trainer.telemetry.progress_bar import ProgressBar

    config = resolve(recipe, with_data(data, settings))
    with closing(ProgressBar()) as progress:
        images = open_dataset(config.data, config.seed, progress=progress)
    sizes = memory_growth(config.data, images.train, num_batches=batches, update_batch=update_batch)
    growth = sizes[-1] / sizes[0] - 1
    if as_json:
        print(json.dumps({"batches": batches, "resident_bytes": sizes, "growth": growth}))
        return
    print(f"resident MB after each tenth of {batches:,} batches: {' '.join(f'{size / 1e6:.0f}' for size in sizes)}")
    print(f"growth from the first tenth to the last: {100 * growth:.2f} %")
