"""The command that sends a recipe to a cluster, or starts it here."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from trainer.cli_options import AsJson, Data, Device, RecipeName, Settings
from trainer.cli_place import (
    Cpus,
    DataElsewhere,
    Gpus,
    Limit,
    MaxSteps,
    Memory,
    Nodes,
    Origin,
    Seeds,
    SiteName,
    Target,
    minutes_of,
    seeds_of,
)
from trainer.settings import with_data, with_origin


def submit(
    recipe: RecipeName,
    target: Target = "local",
    nodes: Nodes = 1,
    gpus: Gpus = 0,
    data: Data = "",
    run: Annotated[
        Path | None, typer.Option("--run", "--run-folder", metavar="FOLDER", help="Run folder; default runs/NAME.")
    ] = None,
    settings: Settings = None,
    origin: Origin = None,
    seeds: Seeds = "",
    site: SiteName = "",
    name: Annotated[str, typer.Option(help="The job's name; the recipe's if not given.")] = "",
    min_nodes: Annotated[int, typer.Option(help="Go on with so few where nodes fail; 0: with all or none.")] = 0,
    processes: Annotated[int, typer.Option(help="Processes of each machine; 0: one a GPU, or one on the CPU.")] = 0,
    cpus: Cpus = 0,
    memory: Memory = "",
    limit: Limit = "",
    max_restarts: Annotated[
        int, typer.Option(help="Times that torchrun starts the processes again, each start of the job.")
    ] = 3,
    max_steps: MaxSteps = 0,
    device: Device = "auto",
    data_elsewhere: DataElsewhere = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end; exit code 0 where it went well.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe on a cluster, or on this machine, apart from this terminal; several seeds are an array of runs.

    Settings and data are checked first, then the cluster is asked whether it would take the job: nothing is sent by
    halves.
    """
    from deploy.site import read_site
    from deploy.targets import submit as send
    from deploy.targets import target_of, wait_for
    from trainer.config import resolve
    from trainer.run.admission import admit, at_site, job_of
    from trainer.run.training import Options

    place, profile = target_of(target), read_site(site)
    changed = at_site(settings or [], profile)
    config = resolve(recipe, with_origin(origin, with_data(data, changed)))
    folder = (run or Path("runs") / (name or recipe)).absolute()
    Options(folder, max_steps, device)
    job = job_of(
        recipe,
        changed,
        config,
        folder,
        data=data,
        data_elsewhere=data_elsewhere,
        max_steps=max_steps,
        device=device,
        name=name or recipe,
        nodes=nodes,
        min_nodes=min_nodes,
        gpus_per_node=gpus,
        processes=processes,
        cpus_per_node=cpus,
        memory_per_node=memory,
        minutes=minutes_of(limit),
        max_restarts=max_restarts,
        seeds=tuple(seed for seed in seeds_of(seeds) if seed is not None),
    )
    text = place.render(job, profile)
    folders = {config.seed if run.seed is None else run.seed: Path(run.run_folder) for run in job.elements}
    checked = admit(config, job.world_size, folders, data_elsewhere=data_elsewhere)
    runs = [element.run_folder for element in job.elements]
    if dry_run:
        sent = {"target": target, "name": job.name, "run_folder": job.run_folder, "run_folders": runs}
        print(json.dumps(sent | {"data": checked, "text": text}) if as_json else text, end="\n" if as_json else "")
        return
    record = send(target, job, profile, recipe=recipe, settings=tuple(changed))
    if gpus and not cpus and target == "slurm" and not profile.slurm.cpus_per_gpu:
        print(
            "note: without --cpus (or slurm.cpus_per_gpu of the site) Slurm often gives 1 CPU a node", file=sys.stderr
        )
    if as_json:
        kept = {"target": record.target, "id": record.id, "name": record.name, "run_folder": record.run_folder}
        print(json.dumps(kept | {"run_folders": runs, "data": checked}))
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
