"""The authors' published checkpoints become run folders."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.config import Config, to_dict
from trainer.models.authors_names import authors_names, from_authors
from trainer.models.build import build_model
from trainer.run.checkpoint import snapshot, step_folders, write_checkpoint
from trainer.run.folder import RunFolder, private_files
from trainer.run.snapshot import load_model

_SOURCES = "a net of L2W-DEN, MSDNet or RANet"

# Plain numbers that training programs save beside the weights (a best accuracy, a flag). These build no more than that.
_NUMBERS: list[Any] = [
    np.dtype,
    *(type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.bool_)),
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]


def import_checkpoint(
    file: Path, config: Config, run: Path, classes: Sequence[str] = (), fingerprint: str | None = None
) -> dict[str, Any]:
    """Write the run folder `run` whose one checkpoint holds the net in `file`; what was found.

    file         of L2W-DEN, MSDNet-PyTorch or RANet-pytorch: a state dict, or a dict that holds one under any key
    config       whose net it is
    classes      names in the order of the net's classes; without them the classes are named by their numbers
    fingerprint  of the images that `classes` come from; None: any images with as many classes may score the net
    Raises ValueError where the file holds anything but plain values, is of another net, or `run` holds a run already.
    """
    folder = RunFolder(run)
    if folder.config_file.is_file() or step_folders(run / "checkpoints"):
        raise ValueError(f"--run-folder {run} holds a run already; give another folder")
    if config.model.imta == "finetune":
        raise ValueError(f"{config.recipe} has collaborating exits, of which nothing was published; import {_SOURCES}")
    key, state = find_state(read_plain(file), config, file)
    num_classes = len(state["classifiers.0.linear.bias"])
    if config.model.num_classes not in (0, num_classes):
        raise ValueError(f"{file} has {num_classes} classes, and model.num_classes is {config.model.num_classes}")
    if classes and len(classes) != num_classes:
        raise ValueError(f"{file} has {num_classes} classes, and the images have {len(classes)}; give its own --data")
    tensors = {f"model.{name}": value for name, value in state.items()}
    load_model(build_model(config.model, num_classes).to(state["classifiers.0.linear.bias"].dtype), tensors)
    names = list(classes) or [str(label) for label in range(num_classes)]
    meta = {"config": to_dict(config), "data_fingerprint": fingerprint, "classes": names, "imported": file.name}
    with private_files():
        folder.claim(config)
        write_checkpoint(run, 0, snapshot(tensors), meta)
    return {"run": str(run), "recipe": config.recipe, "file": str(file), "key": key, "tensors": len(state)} | {
        "num_classes": num_classes,
        "classes": names,
    }


def read_plain(file: Path) -> Any:
    """Tensors and plain values in a torch file; ValueError where it holds anything else, of which nothing is run."""
    if not file.is_file():
        raise ValueError(f"{file} is no file; give the checkpoint to import")
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(_NUMBERS):
            warnings.simplefilter("ignore")  # numpy's, of where its scalars lived when the file was written
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a stranger's bytes make of the reader
        found = re.search(r"GLOBAL (\S+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and found:
            raise ValueError(
                f"{file} holds code ({found[1]}), which could do anything on this machine: nothing of it was run; "
                f"where you trust it, load it elsewhere and save its state_dict alone"
            ) from error
        raise ValueError(
            f"{file} is no file of plain values that torch.save wrote, or is damaged; give the checkpoint as published"
        ) from error


def find_state(content: Any, config: Config, file: Path) -> tuple[str, dict[str, Tensor]]:
    """(key it stood under, our state dict) of the net in a file's content; ValueError where none there is its state.

    Names may have any prefix that is the same for all: `module.` of DataParallel, `net.`, `model.module.`. Entries that
    count batches, which older programs did not save, are 0 then.
    """
    theirs = authors_names(config.model)
    anchor = theirs["classifiers.0.linear.weight"]
    for key, state in _states(content):
        prefixes = [name.removesuffix(anchor) for name in state if name.endswith(anchor)]
        if not prefixes:
            continue
        prefix = min(prefixes, key=len)
        plain = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        if not any(name.endswith(".num_batches_tracked") for name in plain):
            counters = [name for name in theirs.values() if name.endswith(".num_batches_tracked")]
            plain |= {name: torch.zeros((), dtype=torch.int64) for name in counters}
        try:
            return key, from_authors(config.model, plain)
        except ValueError as error:
            raise ValueError(f"{file}: {error} (--recipe {config.recipe})") from error
    raise ValueError(f"{file} holds no state dict with an entry {anchor}: it is not {_SOURCES}")


def _states(content: Any, key: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every mapping of names to tensors, outermost first."""
    if not isinstance(content, Mapping):
        return
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        yield key, tensors
    for name, value in content.items():
        yield from _states(value, f"{key}.{name}" if key else str(name))
