"""A run becomes files that a server runs: one graph a block, and a manifest that says how to use them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dataloading.config import DataConfig
from dataloading.datasets.open import open_dataset
from dataloading.loader import evaluation_loader
from trainer.evaluation.thresholds import read_budgets
from trainer.evaluation.trained_net import TrainedNet, read_trained_net
from trainer.export.graphs import FORMATS, Graph, read_graph, write_graph
from trainer.export.stage import Link, chain
from trainer.models.cost import exit_costs
from trainer.run.folder import private_files

MANIFEST = "manifest.json"
TOLERANCE = 1e-4  # of a logit, absolute and relative: float32 sums in another order
_BATCHES = (1, 2, 7, 16)  # sizes that take turns: a graph must take any number of images


def export_run(
    run: Path,
    kind: str,
    *,
    last_exit: int = 0,
    out: Path | None = None,
    data: str = "",
    num_images: int = 100,
    progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Write the newest checkpoint's net as graphs into a folder, run them on real images, and return the manifest.

    kind        "onnx" | "torch"
    last_exit   the last exit to export, counted from 1; 0: all
    out         folder to make; default RUN/export-FORMAT
    data        images to check the graphs on, where the run's own have moved (or it has none)
    num_images  how many of their validation images
    Raises ValueError for what cannot be exported, for thresholds of another iteration's net, and where a logit differs
    from the net's: nothing is left then.
    """
    if kind not in FORMATS:
        raise ValueError(f"--format is {kind!r}; it must be one of {' | '.join(FORMATS)}")
    if num_images < 1:
        raise ValueError(f"--images is {num_images}; at least 1 image must check the graphs")
    trained = read_trained_net(run, torch.device("cpu"))
    num_exits = last_exit or trained.net.num_exits
    if not 1 <= num_exits <= trained.net.num_exits:
        raise ValueError(f"--exit is {last_exit}; the net has exits 1 to {trained.net.num_exits}")
    out = out or run / f"export-{kind}"
    if out.exists():
        raise ValueError(f"{out} is there already; give another --out, or remove it")
    budgets = _budgets(run, trained) if num_exits == trained.net.num_exits else []  # thresholds are of the whole net
    images = validation_images(trained, data, num_images)
    with private_files():
        temporary = out.with_name(f".{out.name}.writing")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            manifest = _write(trained, kind, num_exits, budgets, images, temporary, progress)
            temporary.rename(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return {"folder": str(out), **manifest}


def validation_images(trained: TrainedNet, data: str, num_images: int) -> Tensor:
    """[n, 3, S, S] float32 on the CPU, normalised: validation images spread evenly over the classes' order."""
    config: DataConfig = trained.config.data
    if data:
        config = dataclasses.replace(config, path=data, source="auto")
    index = open_dataset(config, trained.config.seed).val
    chosen = np.unique(np.linspace(0, len(index) - 1, num_images).astype(np.int64))
    loader = evaluation_loader(
        config, index.subset(chosen), batch_size=len(chosen), rank=0, world_size=1, device=torch.device("cpu")
    )
    with closing(loader):
        (batch,) = loader
    images = batch.normalized(torch.float32, torch.contiguous_format).images
    return images if batch.mask is None else images[batch.mask]


def _write(
    trained: TrainedNet,
    kind: str,
    num_exits: int,
    budgets: list[dict[str, Any]],
    images: Tensor,
    folder: Path,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    config = trained.config
    links, graphs, exits = chain(trained.net, num_exits, config.data.image_size), [], []
    costs = exit_costs(config.model, len(trained.classes), config.data.image_size)
    for link, cost in zip(links, costs, strict=False):
        progress(f"exit {link.exit} of {num_exits}")
        file = folder / f"exit-{link.exit}{FORMATS[kind]}"
        write_graph(link, file)
        graphs.append(read_graph(file, list(link.inputs), list(link.outputs)))
        exits.append(
            {
                "exit": link.exit,
                "file": file.name,
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
                "inputs": _described(link.inputs),
                "outputs": _described(link.outputs),
                "mul_adds": cost.mul_adds,
            }
        )
    progress(f"running the graphs on {len(images)} images")
    for row, difference in zip(exits, check(links, graphs, trained, images), strict=True):
        row["largest_difference"] = difference
    manifest = {
        "format": kind,
        "recipe": config.recipe,
        "iteration": trained.iteration,
        "classes": list(trained.classes),
        "input": {
            "name": "images",
            "shape": ["batch", 3, config.data.image_size, config.data.image_size],
            "dtype": "float32",
            "colours": "RGB, in 0..1, then (value - mean) / std",
            "mean": list(config.data.mean),
            "std": list(config.data.std),
            "resize": _resizing(config.data),
        },
        "rule": "run the graphs in order; an image leaves at the first exit whose largest softmax of logits reaches "
        "the exit's threshold, and is taken out of every output before the next graph",
        "exits": exits,
        "thresholds": budgets,
        "checked_on_images": len(images),
        "tolerance": TOLERANCE,
        "versions": {"torch": torch.__version__},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def check(links: list[Link], graphs: list[Graph], trained: TrainedNet, images: Tensor) -> list[float]:
    """Largest difference of a logit from the net's own, at each exit, over all images.

    The graphs see batches of several sizes, and after each exit every second image only, as where some have left.
    Raises ValueError where a logit is not within TOLERANCE of the net's.
    """
    net, differences = trained.net, [0.0] * len(links)
    start = turn = 0
    while start < len(images):
        part = images[start : start + _BATCHES[turn % len(_BATCHES)]]
        start, turn = start + len(part), turn + 1
        with torch.inference_mode():
            expected = net(part.to(next(net.parameters()).dtype))
        known, kept = {"images": part}, torch.arange(len(part))
        for place, (link, graph) in enumerate(zip(links, graphs, strict=True)):
            with torch.inference_mode():
                known = graph(known)
            said, own = known[f"logits_{link.exit}"], expected[place][kept].float()
            if not torch.allclose(said, own, rtol=TOLERANCE, atol=TOLERANCE):
                worst = float((said - own).abs().max())
                raise ValueError(
                    f"the exported graph of exit {link.exit} differs from the net by {worst:.2g} on a real image, "
                    f"more than {TOLERANCE:g}: nothing was exported; try the other --format"
                )
            differences[place] = max(differences[place], float((said - own).abs().max()))
            if len(kept) > 1 and turn % 2:
                known, kept = {name: value[::2] for name, value in known.items()}, kept[::2]
    return differences


def _described(tensors: dict[str, Tensor]) -> list[dict[str, Any]]:
    return [{"name": name, "shape": ["batch", *tensor.shape[1:]]} for name, tensor in tensors.items()]


def _resizing(data: DataConfig) -> str:
    size = data.image_size
    if data.augmentation == "cifar":
        return f"to {size}x{size}, bilinear with antialiasing"
    return f"short side to {data.resize_size}, bilinear with antialiasing; centre crop {size}x{size}"


def _budgets(run: Path, trained: TrainedNet) -> list[dict[str, Any]]:
    """None where nobody set thresholds on held-out images."""
    rows = read_budgets(run, trained.iteration)
    return [{key: row[key] for key in ("ratio", "thresholds", "mul_adds", "heldout_top1")} for row in rows]
