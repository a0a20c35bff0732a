"""The command that chooses the exit ratio q of the meta loss on held-out images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from trainer.cli_options import AsJson, Data, Device, RecipeName, Settings
from trainer.cli_place import (
    Cpus,
    DataElsewhere,
    Gpus,
    Limit,
    MaxSteps,
    Memory,
    Nodes,
    Parallel,
    Seeds,
    SiteName,
    Target,
    Wait,
    place,
    teller,
)


def tune(
    recipe: RecipeName,
    ratios: Annotated[str, typer.Option(metavar="Q,Q,...", help="Values of meta.ratio to try.")] = "0.5,0.75,1.0,1.25",
    seeds: Seeds = "",
    folder: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Of all runs; default runs/RECIPE-tune.")
    ] = None,
    data: Data = "",
    settings: Settings = None,
    device: Device = "auto",
    target: Target = "local",
    nodes: Nodes = 1,
    gpus: Gpus = 0,
    cpus: Cpus = 0,
    memory: Memory = "",
    limit: Limit = "",
    site: SiteName = "",
    data_elsewhere: DataElsewhere = False,
    max_steps: MaxSteps = 0,
    parallel: Parallel = 0,
    wait: Wait = False,
    as_json: AsJson = False,
) -> None:
    """Train a run a ratio, score each on the images held out of training, and choose by accuracy over cost.

    The score is the mean top-1 over all costs; thresholds and scores come from different held-out images. Writes
    tune.json and tune.png into the folder, thresholds.json, which predict and export take, into each run. Given again,
    what is complete is not trained again. The validation images are never looked at. Exit code 1 where a run failed or
    is still to come.
    """
    from trainer.cli_sweep import trials_of
    from trainer.config import resolve
    from trainer.evaluation.tuning import best, candidates, keep, on_heldout
    from trainer.reporting.plots import write_png
    from trainer.reporting.tune_plot import tune_figure
    from trainer.run.trials import run_trials

    if not resolve(recipe, list(settings or [])).sample_weights.enabled:
        raise ValueError(f"{recipe} is unweighted and has no ratio to choose; give the recipe without -baseline")
    home = folder or Path("runs") / f"{recipe}-tune"
    trials = trials_of(recipe, [f"meta.ratio={ratios}"], seeds, settings, home)
    where = place(
        target=target,
        nodes=nodes,
        gpus=gpus,
        cpus=cpus,
        memory=memory,
        limit=limit,
        site=site,
        data=data,
        data_elsewhere=data_elsewhere,
        max_steps=max_steps,
        parallel=parallel,
        wait=wait,
    )
    states = run_trials(trials, where, teller(home))
    left = {str(run): state for run, state in states.items() if state != "completed"}
    if left:
        first = "; ".join(f"{run} is {state}" for run, state in list(left.items())[:3])
        print(json.dumps({"left": left}) if as_json else f"{len(left)} runs are not complete ({first}); give it again")
        raise typer.Exit(1)
    scored = [on_heldout(run, data, device) for run in states]
    found = candidates(scored)
    result = keep(scored, found, home)
    title = f"{recipe}: {result['num_heldout']:,} held-out images"
    write_png(tune_figure(found, best(found), title), home / "tune.png")
    if as_json:
        print(json.dumps(result))
        return
    exits = [f"exit {k}" for k in range(1, len(found[0].anytime) + 1)]
    table = Table("q", "runs", "mean over costs", *exits, title=f"Held-out top-1 %, {title}", title_justify="left")
    for candidate in found:
        spread = f" ± {candidate.spread:.2f}" if candidate.spread is not None else ""
        chosen = " *" if candidate.ratio == result["chosen"] else ""
        table.add_row(
            f"{candidate.ratio:g}{chosen}",
            str(len(candidate.runs)),
            f"{candidate.score:.2f}{spread}",
            *(f"{top1:.2f}" for top1 in candidate.anytime),
        )
    Console(soft_wrap=True).print(table, highlight=False)
    print(f"Chosen: --set meta.ratio={result['chosen']:g}\nCurve: {home / 'tune.png'}; figures: {home / 'tune.json'}")
