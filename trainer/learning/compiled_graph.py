"""Compiled graphs that outlive their process: a later start loads one without tracing or compiling it again.

torch's caches are asked with a traced graph, and tracing a whole net's tangents is most of what a warm start takes.
Here a graph is kept under all that its trace and its code follow from: the module, the inputs' layout, the sources,
torch, its settings and the processor.
"""

from __future__ import annotations

import hashlib
import io
import logging
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

import kernels
import trainer.models

logger = logging.getLogger(__name__)

Graph = Callable[..., Sequence[Tensor]]
SOURCES = [Path(file).parent for file in (kernels.__file__, trainer.models.__file__, __file__) if file]


def compiled_graph(
    what: str, module: nn.Module, inputs: Sequence[Tensor], trace: Callable[[], torch.fx.GraphModule]
) -> Graph:
    """`trace()`, a graph from tensors laid out as `inputs` to a list of tensors, compiled; or loaded where it was kept.

    what    its name, in the log and in the cache
    module  what is traced; all else that it reads and that may change is among `inputs`
    """
    import torch._inductor  # takes seconds

    path = _place(what, module, inputs)
    if path is not None and (kept := _loaded(what, path)) is not None:
        return kept
    logger.info("precision.compile: the %s is compiled, which takes minutes the first time", what)
    traced = trace()
    with torch.autocast(inputs[0].device.type, enabled=False):  # its casts are in the trace
        graph = torch._inductor.standalone_compile(traced, list(inputs), dynamic_shapes="from_example_inputs")
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            graph.save(path=str(path))  # under another name, then renamed
        except (OSError, RuntimeError) as error:
            logger.warning("precision.compile: the next start compiles the %s again: %s", what, error)
    return graph


def _loaded(what: str, path: Path) -> Graph | None:
    from torch._inductor.standalone_compile import CompiledArtifact

    if not path.exists():
        return None
    try:
        graph: Graph = CompiledArtifact.load(path=str(path))
    except Exception as error:  # a torn file can raise anything
        logger.warning("precision.compile: %s cannot be loaded and is written again: %s", path, error)
        return None
    logger.info("precision.compile: the %s is loaded from %s", what, path)
    return graph


def _place(what: str, module: nn.Module, inputs: Sequence[Tensor]) -> Path | None:
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    try:
        key = fingerprint(module, inputs)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        logger.warning("precision.compile: the %s is compiled at every start: %s", what, error)
        return None
    return Path(cache_dir()) / "earlybird" / f"{what.replace(' ', '-')}-{key}"


def fingerprint(module: nn.Module, inputs: Sequence[Tensor]) -> str:
    """What a graph of `module` follows from, but for the values of tensors, as 32 digits.

    pickle.PicklingError, AttributeError or TypeError for a module that cannot be pickled.
    """
    from torch._inductor import config
    from torch._inductor.codecache import CacheBase, torch_key
    from torch._inductor.cpu_vec_isa import pick_vec_isa

    structure, device, matmul = io.BytesIO(), inputs[0].device.type, torch.backends.cuda.matmul
    _Structure(structure).dump((module, list(inputs)))
    settings = (
        CacheBase.get_system()["hash"],
        str(pick_vec_isa()),
        torch.get_num_threads(),
        torch.get_default_dtype(),
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        matmul.fp32_precision,
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
    )
    sources = (path.read_bytes() for folder in SOURCES for path in sorted(folder.rglob("*.py")))
    found = hashlib.sha256()
    for part in (structure.getvalue(), repr(settings).encode(), torch_key(), config.get_hash(), *sources):
        found.update(hashlib.sha256(part).digest())
    return found.hexdigest()[:32]


class _Structure(pickle.Pickler):
    """A pickle of everything but the values of tensors."""

    def persistent_id(self, value: object) -> object:
        if isinstance(value, Tensor):
            return value.shape, value.stride(), str(value.dtype), str(value.device)
        return None
