"""Stages as files that other programs run: ONNX models, or torch.export programs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from trainer.export.stage import Link

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
Graph = Callable[[dict[str, Tensor]], dict[str, Tensor]]  # inputs by name -> outputs by name


def write_graph(link: Link, path: Path) -> None:
    """Write the stage to `path`, whose suffix is one of FORMATS: any number of images from 1 on, all else fixed."""
    examples = tuple(link.inputs.values())
    batch = {0: Dim("batch", min=1)}
    program = torch.export.export(link.stage, examples, dynamic_shapes=(tuple(batch for _ in examples),), strict=False)
    if path.suffix == FORMATS["onnx"]:
        _write_onnx(program, link, path)
    else:
        torch.export.save(program, path)


def _write_onnx(program: ExportedProgram, link: Link, path: Path) -> None:
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter, about itself
            exported = torch.onnx.export(
                program, input_names=list(link.inputs), output_names=list(link.outputs), dynamo=True, verbose=False
            )
    finally:
        quiet.setLevel(level)
    assert exported is not None
    exported.save(path)


def read_graph(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> Graph:
    """A written graph as a function, run by onnxruntime or by torch, on the CPU."""
    if path.suffix != FORMATS["onnx"]:
        module = torch.export.load(path).module()
        return lambda given: dict(zip(outputs, module(*(given[name] for name in inputs)), strict=True))
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(given: dict[str, Tensor]) -> dict[str, Tensor]:
        arrays: dict[str, Any] = {name: given[name].contiguous().numpy() for name in inputs}
        said = session.run(list(outputs), arrays)
        return {name: torch.from_numpy(values) for name, values in zip(outputs, said, strict=True)}

    return run
