"""The command that sends a recipe to a cluster, or starts it here."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Annotated

import typer

from trainer.cli_options import AsJson, Data, Device, RecipeName, Settings, with_data

_ELSEWHERE = "The data lies where the job runs and cannot be read from here: it goes unchecked."


def submit(
    recipe: RecipeName,
    target: Annotated[str, typer.Option(help="local | slurm | kubernetes | skypilot")] = "local",
    nodes: Annotated[int, typer.Option(help="Machines.")] = 1,
    gpus: Annotated[int, typer.Option(help="GPUs of each, and processes; 0 trains on the CPU.")] = 0,
    data: Data = "",
    run: Annotated[
        Path | None, typer.Option("--run", "--run-folder", metavar="FOLDER", help="Default runs/NAME.")
    ] = None,
    settings: Settings = None,
    seeds: Annotated[str, typer.Option(metavar="0,1,2|0-4", help="One run a seed, as an array.")] = "",
    site: Annotated[
        str, typer.Option(metavar="FILE|NAME", help="Profile; ~/.config/earlybird/site.toml if there.")
    ] = "",
    name: Annotated[str, typer.Option(help="Of the job; default the recipe's.")] = "",
    min_nodes: Annotated[int, typer.Option(help="Go on with so few where nodes fail; 0: all or none.")] = 0,
    processes: Annotated[int, typer.Option(help="A node; 0: one a GPU, on the CPU one.")] = 0,
    cpus: Annotated[int, typer.Option(help="CPUs of each node; 0: the site's or the cluster's choice.")] = 0,
    memory: Annotated[str, typer.Option(metavar="64G", help="Of each node; the cluster's choice if not given.")] = "",
    limit: Annotated[str, typer.Option("--time", metavar="24h|90min", help="Limit; the cluster's if not given.")] = "",
    max_restarts: Annotated[int, typer.Option(help="Of the processes within one start of the job.")] = 3,
    max_steps: Annotated[int, typer.Option(help="Stop after so many iterations of the run; 0 runs it whole.")] = 0,
    device: Device = "auto",
    data_elsewhere: Annotated[bool, typer.Option("--data-elsewhere", help=_ELSEWHERE)] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended; exit code 0 where it went well.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe on a cluster, or on this machine, apart from this terminal.

    Settings and data are checked first, then the cluster is asked whether it would take the job: nothing is sent by
    halves.
    """
    from deploy.job import Job
    from deploy.site import read_site
    from deploy.targets import submit as send
    from deploy.targets import target_of, wait_for
    from trainer.config import resolve
    from trainer.run.admission import admit
    from trainer.run.interval import Interval
    from trainer.run.training import Options

    place, profile = target_of(target), read_site(site)
    if data and not data_elsewhere:
        data = str(Path(data).expanduser().absolute())
    changed = list(settings or [])
    port = profile.ports.telemetry
    if port and not any(setting.partition("=")[0].strip() == "telemetry.port" for setting in changed):
        changed.append(f"telemetry.port={port}")
    config = resolve(recipe, with_data(data, changed))
    folder = (run or Path("runs") / (name or recipe)).absolute()
    Options(folder, max_steps, device)
    arguments = ["train", recipe, *(word for setting in changed for word in ("--set", setting))]
    arguments += ["--max-steps", str(max_steps)] if max_steps else []
    arguments += ["--device", device] if device != "auto" else []
    job = Job(
        name=name or recipe,
        arguments=tuple(arguments),
        run_folder=str(folder),
        data=data,
        nodes=nodes,
        min_nodes=min_nodes,
        gpus_per_node=gpus,
        processes=processes,
        cpus_per_node=cpus,
        memory_per_node=memory,
        minutes=math.ceil(Interval.time(limit, "--time") / 60) if limit else 0,
        grace_seconds=math.ceil(Interval.time(config.run.grace, "run.grace")),
        max_restarts=max_restarts,
        seeds=parse_seeds(seeds),
    )
    text = place.render(job, profile)
    folders = {config.seed if run.seed is None else run.seed: Path(run.run_folder) for run in job.elements}
    checked = admit(config, job.world_size, folders, data_elsewhere=data_elsewhere)
    if dry_run:
        print(text, end="")
        return
    record = send(target, job, profile, recipe=recipe, settings=tuple(changed))
    if gpus and not cpus and target == "slurm" and not profile.slurm.cpus_per_gpu:
        print(
            "note: without --cpus (or slurm.cpus_per_gpu of the site) Slurm often gives 1 CPU a node", file=sys.stderr
        )
    if as_json:
        kept = {"target": record.target, "id": record.id, "name": record.name, "run_folder": record.run_folder}
        print(json.dumps(kept | {"run_folders": record.run_folders or (record.run_folder,), "data": checked}))
    else:
        shown = run or Path("runs") / (name or recipe)
        print(
            f"job {record.id} on {target}: {recipe}, {job.world_size} processes on {nodes} nodes; data: {checked}\n"
            f"Next: earlybird status {shown}; earlybird logs {shown} -f; earlybird cancel {shown}"
        )
    if wait:
        ended = wait_for(record, lambda now: print(f"{now.state} {now.reason} {now.nodes}".strip(), file=sys.stderr))
        if ended.state != "completed":
            raise typer.Exit(1)


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0,1,2`, `0-4` or both; ValueError for anything else."""
    seeds: list[int] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) - int(first) > 9999:
            raise ValueError(f"--seeds is {text!r}; write 0,1,2 or 0-4")
        seeds += range(int(first), int(last or first) + 1)
    if text.strip() and not seeds:
        raise ValueError(f"--seeds is {text!r}; write 0,1,2 or 0-4")
    return tuple(seeds)
