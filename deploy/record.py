"""What is kept of a submission, in its run folder: `status`, `logs`, `cancel` and `runs` go by it."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.site import Site, site_from

FILE = "job.json"


@dataclass(frozen=True)
class Record:
    """One submission, or one run of its array.

    id            the scheduler's; of one run of an array the run's own
    submitted_at  seconds since 1970
    text          what was sent
    run_folder    absolute
    run_folders   of an array, in the folder of the whole: those of its runs
    recipe        and `settings`: what trains
    """

    target: str
    id: str
    name: str
    submitted_at: float
    run_folder: str
    text: str
    recipe: str = ""
    settings: tuple[str, ...] = ()
    nodes: int = 1
    gpus_per_node: int = 0
    run_folders: tuple[str, ...] = ()
    site: Site = dataclasses.field(default_factory=Site)

    def of(self, index: int, run_folder: str) -> Record:
        """The record of one run of the array."""
        return dataclasses.replace(self, id=f"{self.id}_{index}", run_folder=run_folder, run_folders=())

    def write(self, folder: Path) -> None:
        """Into `folder`, for its user and group alone: the environment may hold what is nobody else's business."""
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f"{FILE}.tmp"
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640), "w") as file:
            file.write(json.dumps(dataclasses.asdict(self), indent=1) + "\n")
        temporary.replace(folder / FILE)


def read_record(folder: Path) -> Record | None:
    """The record in `folder`, None where none was submitted there; ValueError for a damaged one."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        values: dict[str, Any] = json.loads(path.read_text())
        values["site"] = site_from(values["site"])
        for name in ("settings", "run_folders"):
            values[name] = tuple(values[name])
        return Record(**values)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{path} is damaged ({error}); remove it to treat the run as one that was not submitted"
        ) from error
