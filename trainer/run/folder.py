"""A run's folder: its configuration, log, checkpoints and results."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.config import Config, read_config, write_config
from trainer.run.checkpoint import step_folders
from trainer.settings import nearest, setting_names
from trainer.telemetry.jsonl import to_json

# What may differ between a run and its continuation: where the data lies and what reads it (decoders differ in the
# rounding of a pixel), what is logged and when it is saved. All else makes it another run.
FREE = (
    "telemetry.",
    "checkpoint.",
    "optim.recompute",
    "origin.run",  # origin.weights says what was in it
    "data.path",
    "data.loader",
    "data.decode",
    "data.num_threads",
    "data.prefetch",
    "run.log_every",
    "run.evaluate_every",
    "run.evaluation_batch",
    "run.grace",
    "run.record_ids",
    "health.",
)
REMEDY = "give --run another folder, or --allow NAME to go on with that setting changed"


@contextmanager
def private_files() -> Iterator[None]:
    """What the process makes inside is open to its user and group alone: weights, image names and paths are nobody
    else's. A stricter umask stays as it is."""
    before = os.umask(0o777)
    os.umask(before | 0o007)
    try:
        yield
    finally:
        os.umask(before)


class RunFolder:
    """Paths of a run, and the promise that one folder holds one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config_file = path / "config.json"
        self.log_file = path / "log.jsonl"
        self.summary_file = path / "summary.json"
        self.evaluation_file = path / "evaluation.json"
        self.thresholds_file = path / "thresholds.json"

    def check(self, config: Config, allowed: Sequence[str] = (), remedy: str = REMEDY) -> None:
        """ValueError naming what differs where the folder holds another run than `config`.

        A start that never came to a checkpoint holds nothing: its settings may be mended and tried again.
        allowed  names of settings that may differ all the same (--allow)
        remedy   what the command that asks can do about it
        """
        known = setting_names(config)
        for name in allowed:
            if name not in known:
                raise ValueError(
                    f"--allow {name}: no setting has this name{nearest(name, list(known))} (earlybird show RECIPE "
                    f"lists them)"
                )
        if os.path.exists(self.path) and not os.path.isdir(self.path):
            raise ValueError(f"--run {self.path} is a file; give a folder")
        if not os.path.isfile(self.config_file) or not step_folders(self.path / "checkpoints"):
            return
        theirs, ours = setting_names(read_config(self.config_file)), known
        differing = [
            f"{name} is {theirs.get(name)} there and {ours.get(name)} here"
            for name in sorted(theirs.keys() | ours.keys())
            if theirs.get(name) != ours.get(name) and not name.startswith(FREE) and name not in allowed
        ]
        if differing:
            more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
            raise ValueError(f"--run {self.path} holds another run: {'; '.join(differing[:3])}{more}; {remedy}")

    def claim(self, config: Config) -> None:
        """Write `config` into the folder; ValueError where it cannot be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_config(config, self.config_file)
        except OSError as error:
            raise ValueError(f"--run {self.path} cannot be written ({error.strerror}); give another folder") from error

    def read_config(self) -> Config:
        """The configuration of an existing run; ValueError where this is no run folder."""
        if not self.config_file.is_file():
            raise ValueError(f"{self.path} is no run folder (it has no config.json); give one that train wrote")
        return read_config(self.config_file)

    def write_summary(self, summary: dict[str, Any]) -> None:
        """How the run's last start ended, for programs: `status` completed, stopped, preempted, diverged or failed."""
        write_json(self.summary_file, summary)

    def remove_summary(self) -> None:
        """A start begins: none has ended since."""
        self.summary_file.unlink(missing_ok=True)

    def read_summary(self) -> dict[str, Any] | None:
        """What `write_summary` kept; None while the run trains, or where it died without a word."""
        return json.loads(self.summary_file.read_text()) if self.summary_file.is_file() else None

    def write_evaluation(self, evaluation: dict[str, Any]) -> None:
        """The newest anytime and budgeted figures, which a report is drawn from."""
        write_json(self.evaluation_file, evaluation)

    def read_evaluation(self) -> dict[str, Any] | None:
        """What `write_evaluation` kept, if anything."""
        return json.loads(self.evaluation_file.read_text()) if self.evaluation_file.is_file() else None

    def write_thresholds(self, thresholds: dict[str, Any]) -> None:
        """Budgets that were measured on the held-out images alone."""
        write_json(self.thresholds_file, thresholds)

    def read_thresholds(self) -> dict[str, Any] | None:
        """What `write_thresholds` kept, if anything."""
        return json.loads(self.thresholds_file.read_text()) if self.thresholds_file.is_file() else None


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Into `path`, whole or not at all; what is not finite becomes null."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(to_json(values, indent=1) + "\n")
    temporary.replace(path)
