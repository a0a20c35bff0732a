"""The authors' published checkpoints become run folders."""

from __future__ import annotations

import pickle
import re
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trainer.config import Config, to_dict
from trainer.models.authors_names import authors_names, from_authors
from trainer.models.build import build_model
from trainer.models.config import MOST
from trainer.run.checkpoint import snapshot, step_folders, write_checkpoint
from trainer.run.folder import RunFolder, private_files
from trainer.run.snapshot import load_model

_SOURCES = "a net of L2W-DEN, MSDNet or RANet"
_KEYS = ("state_dict", "model")
_COUNTER = ".num_batches_tracked"
_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

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
    Raises ValueError where the file holds anything but plain values, several nets that none of its keys tells apart,
    another net or weights that are none, or `run` holds a run already.
    """
    folder = RunFolder(run)
    if folder.config_file.is_file() or step_folders(run / "checkpoints"):
        raise ValueError(f"--run-folder {run} holds a run already; give another folder")
    if config.model.imta == "finetune":
        raise ValueError(f"{config.recipe} has collaborating exits, of which nothing was published; import {_SOURCES}")
    key, state = find_state(read_plain(file), config, file)
    num_classes = _num_classes(state, file)
    if config.model.num_classes not in (0, num_classes):
        raise ValueError(f"{file} has {num_classes} classes, and model.num_classes is {config.model.num_classes}")
    if classes and len(classes) != num_classes:
        raise ValueError(f"{file} has {num_classes} classes, and the images have {len(classes)}; give its own --data")
    tensors = {f"model.{name}": value for name, value in state.items()}
    load_model(build_model(config.model, num_classes).to(state["classifiers.0.linear.bias"].dtype), tensors)
    _check_finite(state, config, file)  # only now: a tensor of another shape may be too large to look at
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
    """(key it stood under, our state dict) of the net in a file's content; ValueError where none there is its state, or
    its tensors are no dense weights.

    Of several nets that one is taken whose key is state_dict or model, else ends so, the outermost of these; a moving
    average (ema) only where there is nothing else. Names may have any prefix that is the same for all: `module.` of
    DataParallel, `net.`, `model.module.`. Entries that count batches, which older programs did not save, are 0 then.
    """
    theirs = authors_names(config.model)
    anchor = theirs["classifiers.0.linear.weight"]
    nets = [(key, state) for key, state in _states(content) if any(name.endswith(anchor) for name in state)]
    if not nets:
        raise ValueError(f"{file} holds no state dict with an entry {anchor}: it is not {_SOURCES}")
    best = min(_rank(key) for key, _ in nets)
    chosen = [(key, state) for key, state in nets if _rank(key) == best]
    if len(chosen) > 1:
        keys = " and ".join(".".join(key) for key, _ in chosen)
        raise ValueError(f"{file} holds several nets, under {keys}; save the one to import in a file of its own")
    key, state = chosen[0]
    prefix = min((name.removesuffix(anchor) for name in state if name.endswith(anchor)), key=len)
    plain = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not any(name.endswith(_COUNTER) for name in plain):
        plain |= {name: torch.zeros((), dtype=torch.int64) for name in theirs.values() if name.endswith(_COUNTER)}
    try:
        found = from_authors(config.model, plain)
    except ValueError as error:
        raise ValueError(f"{file}: {error} (--recipe {config.recipe})") from error
    for ours, value in found.items():
        _check_dense(value, f"{file}: {prefix}{theirs[ours]}", counts=ours.endswith(_COUNTER))
    return ".".join(key), found


def _states(content: Any) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """(keys on the way, entries) of every mapping of names to tensors, outermost first, each once: a mapping may hold
    itself."""
    waiting: deque[tuple[tuple[str, ...], Any]] = deque([((), content)])
    seen: set[int] = set()
    while waiting:
        key, held = waiting.popleft()
        if not isinstance(held, Mapping) or id(held) in seen:
            continue
        seen.add(id(held))
        tensors = {name: value for name, value in held.items() if isinstance(name, str) and isinstance(value, Tensor)}
        if tensors:
            yield key, tensors
        waiting += (((*key, str(name)), value) for name, value in held.items())


def _rank(key: tuple[str, ...]) -> tuple[bool, int, int]:
    """Of the key that a net stands under: the lower, the more it is the one to import."""
    last = key[-1] if key else "state_dict"
    averaged = any("ema" in part.lower() for part in key)
    return averaged, 0 if last in _KEYS else 1 if last.endswith(_KEYS) else 2, len(key)


def _check_dense(value: Tensor, name: str, *, counts: bool) -> None:
    if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized or value.is_nested:
        raise ValueError(f"{name} is no dense tensor of numbers; save the net's state_dict with plain tensors")
    if not counts and value.dtype not in _DTYPES:
        kinds = ", ".join(str(kind).removeprefix("torch.") for kind in _DTYPES)
        raise ValueError(f"{name} is {str(value.dtype).removeprefix('torch.')}; weights must be one of {kinds}")


def _check_finite(state: Mapping[str, Tensor], config: Config, file: Path) -> None:
    for ours, value in state.items():
        if not value.isfinite().all():
            name = authors_names(config.model)[ours]
            raise ValueError(f"{file}: {name} holds values that are not finite: the net diverged; import another one")


def _num_classes(state: Mapping[str, Tensor], file: Path) -> int:
    bias = state["classifiers.0.linear.bias"]
    if bias.ndim != 1 or not 0 < len(bias) <= MOST["num_classes"]:
        raise ValueError(
            f"{file}: the first classifier's bias has shape {tuple(bias.shape)}; it must hold one number a class, at "
            f"least 1 and at most {MOST['num_classes']:,}"
        )
    return len(bias)
