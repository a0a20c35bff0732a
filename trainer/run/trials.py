"""Several runs as one piece of work: checked together, submitted, and those that are complete left alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from deploy.job import Job
from deploy.site import Site
from deploy.sweep import carry_out, job_name
from deploy.target import State
from deploy.targets import target_of
from trainer.config import Config, resolve
from trainer.run.admission import admit, at_site, job_of, settled
from trainer.run.folder import RunFolder
from trainer.run.origin import with_seed
from trainer.settings import with_data, with_origin

_REMEDY = "give --folder another one, or the settings that its runs were begun with"


@dataclass(frozen=True)
class Trial:
    """One run: a recipe with settings (the seed among them) in a folder of its own.

    origin  the run whose net it begins with, None for none; {seed} in its path is the trial's
    runs    the folder that holds all of its like, None for the one that holds `folder`
    """

    recipe: str
    settings: tuple[str, ...]
    folder: Path
    origin: Path | None = None
    runs: Path | None = None


def seeded(
    recipe: str,
    settings: Sequence[str],
    folder: Path,
    seeds: Sequence[int | None],
    label: str = "",
    origin: Path | None = None,
) -> list[Trial]:
    """One trial a seed, in FOLDER/LABEL/seed-N; of the seed None, the recipe's own, in FOLDER/LABEL."""
    return [
        Trial(
            recipe,
            (*settings, *([f"seed={seed}"] if seed is not None else [])),
            Path(folder, *filter(None, (label, f"seed-{seed}" if seed is not None else ""))),
            origin,
            folder.parent,
        )
        for seed in seeds
    ]


@dataclass(frozen=True)
class Place:
    """Where the runs of a piece of work are carried out, each with as much.

    parallel  jobs in progress at a time; 0: one on this machine, all of them on a cluster
    wait      until all have ended; this machine's jobs are always waited for
    """

    target: str = "local"
    nodes: int = 1
    gpus: int = 0
    cpus: int = 0
    memory: str = ""
    minutes: int = 0
    site: Site = field(default_factory=Site)
    data: str = ""
    data_elsewhere: bool = False
    max_steps: int = 0
    parallel: int = 0
    wait: bool = False

    @property
    def at_once(self) -> int:
        return self.parallel or (1 if self.target == "local" else 0)


@dataclass(frozen=True)
class Plan:
    """Trials that were checked: each by its folder's absolute path, and as a job."""

    trials: dict[str, Trial]
    jobs: dict[str, Job]
    complete: set[str]


def plan(trials: Sequence[Trial], place: Place) -> Plan:
    """The trials as jobs, nothing submitted. ValueError, in one line, where one of them would be refused: for its
    settings, its data or its origin, or for the other run that its folder holds, complete or not."""
    by_folder = {
        str(trial.folder.absolute()): replace(trial, settings=tuple(at_site(trial.settings, place.site)))
        for trial in trials
    }
    if len(by_folder) < len(trials):
        raise ValueError("two of the runs would share a folder; give each its own")
    configs = {folder: trial_config(trial, place.data) for folder, trial in by_folder.items()}
    jobs = {
        folder: job_of(
            trial.recipe,
            trial.settings,
            configs[folder],
            trial.folder,
            data=place.data,
            data_elsewhere=place.data_elsewhere,
            max_steps=place.max_steps,
            runs=str(trial.runs.absolute()) if trial.runs else "",
            name=job_name(trial.recipe, *trial.folder.parts[-2:]),
            nodes=place.nodes,
            gpus_per_node=place.gpus,
            cpus_per_node=place.cpus,
            memory_per_node=place.memory,
            minutes=place.minutes,
        )
        for folder, trial in by_folder.items()
    }
    for folder, config in configs.items():
        settled(config, Path(folder), elsewhere=place.data_elsewhere, remedy=_REMEDY)
    complete = {folder for folder in jobs if is_complete(Path(folder), place.max_steps)}
    for folder in [folder for folder in jobs if folder not in complete]:
        admit(
            configs[folder],
            jobs[folder].world_size,
            {configs[folder].seed: Path(folder)},
            data_elsewhere=place.data_elsewhere,
        )
    return Plan(by_folder, jobs, complete)


def run_trials(
    trials: Sequence[Trial], place: Place, told: Callable[[Path, str], None] = lambda folder, what: None
) -> dict[Path, State]:
    """How each stands, by its folder: completed, failed or cancelled, unknown where its scheduler fell silent; where
    nobody waits, pending.

    All are planned, and the first job is checked with its cluster, before the first is submitted: ValueError, in one
    line, for what would be refused.
    """
    planned = plan(trials, place)
    left = [job for folder, job in planned.jobs.items() if folder not in planned.complete]
    if left:
        target_of(place.target).check(left[0], place.site)
    by_folder = planned.trials
    states = carry_out(
        planned.jobs,
        place.target,
        place.site,
        finished=lambda folder: is_complete(Path(folder), place.max_steps),
        at_once=place.at_once,
        wait=place.wait or place.target == "local",
        told=lambda folder, what: told(by_folder[folder].folder, what),
        recipes={folder: trial.recipe for folder, trial in by_folder.items()},
    )
    return {by_folder[folder].folder: state for folder, state in states.items()}


def trial_config(trial: Trial, data: str) -> Config:
    """The whole configuration of a trial on the images in `data`, "" for the recipe's own."""
    return with_seed(resolve(trial.recipe, with_origin(trial.origin, with_data(data, trial.settings))))


def is_complete(folder: Path, max_steps: int = 0) -> bool:
    """Whether the run there went to its end, or to `max_steps`."""
    kept = RunFolder(folder).read_summary() or {"status": ""}
    ended: bool = kept["status"] == "completed"
    return ended or (kept["status"] == "stopped" and 0 < max_steps <= kept["iterations"])
