"""Options of the commands that carry out several runs: where, with how much, and how many at a time."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from trainer.run.trials import Place

Target = Annotated[str, typer.Option(help="local | slurm | kubernetes | skypilot")]
Nodes = Annotated[int, typer.Option(help="Machines of each run.")]
Gpus = Annotated[int, typer.Option(help="GPUs of each machine; 0 trains on the CPU.")]
Cpus = Annotated[int, typer.Option(help="CPUs of each machine; 0: the site's or the cluster's choice.")]
Memory = Annotated[str, typer.Option(metavar="64G", help="Of each machine; the cluster's choice if not given.")]
Limit = Annotated[str, typer.Option("--time", metavar="24h|90min", help="Limit of each run.")]
SiteName = Annotated[
    str, typer.Option("--site", metavar="FILE|NAME", help="Profile; ~/.config/earlybird/site.toml if there.")
]
MaxSteps = Annotated[int, typer.Option(help="Stop each run after so many iterations; 0 runs it whole.")]
Seeds = Annotated[
    str, typer.Option(metavar="5|0,1,2|3-7", help="So many runs (5: seeds 0 to 4), or which; not given: one.")
]
Origin = Annotated[
    Path | None,
    typer.Option(
        "--from", metavar="RUN", help="The run whose net ...-imta-finetune begins with; {seed} is each run's."
    ),
]
Parallel = Annotated[
    int, typer.Option(min=0, help="Runs in progress at a time; 0: one on this machine, all on a cluster.")
]
Wait = Annotated[bool, typer.Option("--wait", help="Follow a cluster's jobs to their ends; local ones always are.")]
DataElsewhere = Annotated[bool, typer.Option("--data-elsewhere", help="The data cannot be read from here: unchecked.")]


def place(
    *,
    target: str,
    nodes: int,
    gpus: int,
    cpus: int,
    memory: str,
    limit: str,
    site: str,
    data: str,
    data_elsewhere: bool,
    max_steps: int,
    parallel: int,
    wait: bool,
) -> Place:
    """The options as one value."""
    from deploy.site import read_site
    from trainer.run.trials import Place

    if max_steps < 0:
        raise ValueError(f"--max-steps is {max_steps}; give a positive number of iterations, 0 for all")
    return Place(
        target=target,
        nodes=nodes,
        gpus=gpus,
        cpus=cpus,
        memory=memory,
        minutes=minutes_of(limit),
        site=read_site(site),
        data=data,
        data_elsewhere=data_elsewhere,
        max_steps=max_steps,
        parallel=parallel,
        wait=wait,
    )


def minutes_of(limit: str) -> int:
    """Of --time, rounded up; 0 for none."""
    from trainer.run.interval import Interval

    return math.ceil(Interval.time(limit, "--time") / 60) if limit else 0


def seeds_of(text: str) -> tuple[int | None, ...]:
    """`5` is 0 to 4; `0,1,2`, `0-4` or both say which; "" is (None,), the recipe's own. Else ValueError."""
    if text.strip().isdecimal():
        if not 0 < int(text) <= 1000:
            raise ValueError(f"--seeds is {text}; give 1 to 1000 of them, or name them as 7-9")
        return tuple(range(int(text)))
    seeds: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) - int(first) > 9999:
            raise ValueError(f"--seeds is {text!r}; write 0,1,2 or 0-4")
        seeds += range(int(first), int(last or first) + 1)
    if text.strip() and not seeds:
        raise ValueError(f"--seeds is {text!r}; write 0,1,2 or 0-4")
    return tuple(seeds) or (None,)


def teller(within: Path) -> Callable[[Path, str], None]:
    """Prints what happens to a run, by its folder's name in `within`, on standard error."""

    def told(folder: Path, what: str) -> None:
        name = folder.relative_to(within) if folder.is_relative_to(within) else folder
        where = f"; earlybird logs {folder} --job shows why" if what == "failed" else ""
        print(f"{name}: {what}{where}", file=sys.stderr, flush=True)

    return told
