"""Many jobs from one command: every combination of the settings that vary, and their jobs carried out."""

from __future__ import annotations

import hashlib
import itertools
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.job import LONGEST_NAME, Job
from deploy.record import Record
from deploy.site import Site
from deploy.target import ENDED, State
from deploy.targets import SILENCE, in_progress, standing_of, submit

MOST = 1000  # combinations: more are a mistake, or a matter for a scheduler's own arrays
_PAUSE = 2.0  # seconds between two looks at the jobs


@dataclass(frozen=True)
class Combination:
    """One of a sweep.

    label     what varies, as a folder is named by it: ratio-0.5_width-100
    settings  as --set takes them
    """

    label: str
    settings: tuple[str, ...]


def combinations(vary: Sequence[str], lists: Collection[str] = ()) -> tuple[Combination, ...]:
    """Every combination of `vary`, the last one changing fastest.

    vary   NAME=VALUE,VALUE,... each; NAME:NAME=VALUE:VALUE,... has several change together. Where a value holds a comma
           itself, semicolons part the values: NAME=1,1;2,1
    lists  names of settings that are lists: their values are parted by semicolons alone
    Raises ValueError for a name that comes twice, no value, a value that comes twice, or too many combinations.
    """
    axes = [_axis(text, lists) for text in vary]
    names = [name for axis in axes for name, _ in axis[0]]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"--vary {twice[0]} comes twice; write all its values once")
    number = 1
    for axis in axes:
        number *= len(axis)
    if number > MOST:
        raise ValueError(f"--vary gives {number:,} combinations; at most {MOST} make one sweep: split it")
    short = {name: name.rpartition(".")[2] for name in names}
    short = {name: brief if list(short.values()).count(brief) == 1 else name for name, brief in short.items()}
    found = []
    for chosen in itertools.product(*axes):
        pairs = [pair for part in chosen for pair in part]
        label = "_".join(f"{short[name]}-{_plain(value)}" for name, value in pairs)
        found.append(Combination(label, tuple(f"{name}={value}" for name, value in pairs)))
    return tuple(_told_apart(found))


def _axis(text: str, lists: Collection[str]) -> list[tuple[tuple[str, str], ...]]:
    """The values of one --vary, each as (name, value) of every name that changes with it."""
    left, equals, right = text.partition("=")
    names = [name.strip() for name in left.split(":")]
    parted_by = ";" if ";" in right or any(name in lists for name in names) else ","
    texts = [part.strip() for part in right.split(parted_by) if part.strip()]
    if not equals or not all(names) or not texts:
        raise ValueError(f"--vary {text}: write NAME=VALUE,VALUE, for example --vary meta.ratio=0.5,0.75")
    axis = []
    for value in texts:
        values = [part.strip() for part in value.split(":")] if len(names) > 1 else [value]
        if len(values) != len(names):
            raise ValueError(f"--vary {text}: {value!r} must hold {len(names)} values, parted by colons")
        axis.append(tuple(zip(names, values, strict=True)))
    if len(set(axis)) < len(axis):
        raise ValueError(f"--vary {text}: a value comes twice; leave one out")
    return axis


def _plain(value: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", value).strip("-.") or "none"


def _told_apart(found: Sequence[Combination]) -> list[Combination]:
    """Labels that fit a file's name, each another: what a label cannot show, a hash of the settings does."""
    labels = [one.label for one in found]
    return [
        one
        if len(one.label) <= 120 and labels.count(one.label) == 1
        else Combination(f"{one.label[:110]}-{_hash(*one.settings)}", one.settings)
        for one in found
    ]


def job_name(*parts: str) -> str:
    """A job's name of these parts, shortened with a hash where they are too long for one."""
    text = "-".join(filter(None, parts))
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    if not name[:1].isalpha():  # nothing of it may be left, or a digit first
        name = f"run-{name or _hash(text)}"
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 7].rstrip('-')}-{_hash(text)}"


def _hash(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode(errors="surrogateescape")).hexdigest()[:6]


def carry_out(
    jobs: Mapping[str, Job],
    target: str,
    site: Site,
    *,
    finished: Callable[[str], bool],
    at_once: int = 0,
    wait: bool = True,
    told: Callable[[str, str], None] = lambda run_folder, what: None,
    recipes: Mapping[str, str] | None = None,
    pause: float = _PAUSE,
    silence: float = SILENCE,
) -> dict[str, State]:
    """Submit the jobs, at most `at_once` in progress (0: all of them); how each stands in the end, by its run folder.

    jobs      by run folder
    finished  whether the run in a folder is complete: it is skipped. A job that is in progress there, from an earlier
              sweep, is followed; one that failed is submitted again and goes on from its newest checkpoint
    wait      follow them to their ends; without it, all are submitted at once and none is waited for
    told      hears of every change: (run folder, what)
    silence   seconds in which nobody can say how a job stands until it is followed no more, and its state is unknown
    Raises ValueError where a job would be refused: those submitted before it go on.
    """
    if at_once and not wait:
        raise ValueError(f"--parallel is {at_once}, which needs someone who waits for the jobs; add --wait")
    states: dict[str, State] = {}
    waiting, going, heard = list(jobs), dict[str, Record](), dict[str, float]()
    while waiting or going:
        while waiting and (not at_once or len(going) < at_once):
            folder = waiting.pop(0)
            if finished(folder):
                states[folder] = "completed"
                told(folder, "is complete already")
                continue
            record = in_progress(Path(folder))
            if record is None:
                record = submit(target, jobs[folder], site, recipe=(recipes or {}).get(folder, ""))
                told(folder, f"job {record.id} on {target}")
            else:
                told(folder, f"job {record.id} on {record.target} goes on")
            going[folder], heard[folder] = record, time.monotonic()
        if not wait:
            return states | dict.fromkeys(going, "pending")
        for folder, record in list(going.items()):
            standing = standing_of(record)
            state = standing.state
            if state != "unknown":
                heard[folder] = time.monotonic()
            if state in ENDED or (state == "unknown" and finished(folder)):
                del going[folder]
                states[folder] = "completed" if finished(folder) else "failed" if state != "cancelled" else state
                told(folder, states[folder])
            elif time.monotonic() - heard[folder] > silence:
                del going[folder]
                states[folder] = "unknown"
                told(folder, f"job {record.id} is followed no more ({standing.reason or 'its scheduler forgot it'})")
        if going:
            time.sleep(pause)
    return {folder: states[folder] for folder in jobs}
