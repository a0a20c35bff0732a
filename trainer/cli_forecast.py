"""What the missing rows of a published table will take to train: measured on this machine, and printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from trainer.reporting.published_tables import TableRow
    from trainer.run.trials import Trial


def forecast_rows(
    missing: Mapping[TableRow, Sequence[Trial]], data: str, device: str, steps: int, batch: int
) -> list[dict[str, Any]]:
    """A row a recipe, each measured once: the weight net's size and the seed change no time worth telling.

    missing  the runs to come of each row of the table
    `images` and `classes` are of what trains in `data`; `published_images` (with those held out) and
    `published_classes` of the set that the row is of.
    """
    from dataloading.datasets.open import open_dataset
    from trainer.doctor.forecast import forecast
    from trainer.recipes.catalogue import classes_of
    from trainer.run.distributed import process_group
    from trainer.run.trials import trial_config
    from trainer.telemetry.progress_bar import ProgressBar

    found = []
    with process_group(device) as ranks:
        for recipe in dict.fromkeys(row.recipe for row in missing):
            rows = [row for row in missing if row.recipe == recipe]
            num_runs = sum(len(missing[row]) for row in rows)
            config = trial_config(missing[rows[0]][0], data)
            with closing(ProgressBar()) as bar:
                images = open_dataset(config.data, config.seed, progress=bar)
            with Console(stderr=True).status(f"measuring {recipe}"):
                measured = forecast(config, images, ranks, steps=steps, batch=batch)
            found.append(
                {
                    "recipe": recipe,
                    "rows": [row.name for row in rows],
                    "runs": num_runs,
                    "epochs": config.run.epochs,
                    "images": len(images.train),
                    "classes": len(images.classes),
                    "published_images": rows[0].published.num_images,
                    "published_classes": classes_of(rows[0].config),
                    "device": f"{measured.devices} x {measured.device}",
                    "images_per_second": measured.images_per_second,
                    "device_hours_each": measured.device_hours,
                    "device_hours": measured.device_hours * num_runs,
                }
            )
    return found


def device_hours(rows: Sequence[Mapping[str, Any]]) -> float:
    """Of all runs together."""
    return float(sum(row["device_hours"] for row in rows))


def show_forecast(rows: Sequence[Mapping[str, Any]], command: str, target: str, console: Console) -> None:
    """The forecast as a table, and what its hours are of.

    command  what measures the same elsewhere; target  where the runs are to be trained
    """
    table = Table()
    table.add_column("row", overflow="fold")
    for name in ("runs", "epochs", "images", "images/s", "device hours each", "together"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            ", ".join(row["rows"]),
            str(row["runs"]),
            str(row["epochs"]),
            f"{row['images']:,}",
            f"{row['images_per_second']:,.1f}",
            f"{row['device_hours_each']:,.2f}",
            f"{row['device_hours']:,.2f}",
        )
    console.print(table, highlight=False)
    first = rows[0]
    images = f"{first['images']:,} training images of {first['classes']:,} classes"
    published = f"{first['published_images']:,} with those held out, of {first['published_classes']:,}"
    hours = f"{device_hours(rows):,.2f} hours of {first['device']}"
    lines = [f"{hours}, measured here, with {images} (published: {published})."]
    if first["device"].endswith(" cpu") or target != "local":
        whose = "a GPU" if target == "local" else f"a GPU of the target {target}"
        lines.append(f"They are hours of this device: those of {whose} need the measurement there, by {command}")
    for line in lines:
        console.print(line, highlight=False, markup=False)
