"""What a CUDA graph does, on a CPU: the operations of a piece of work are recorded with the memory they read and write,
and replayed on that very memory without a line of Python. What a graph could not hold is refused, as a GPU would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

T = TypeVar("T")
aten = torch.ops.aten
HOST = {
    aten._local_scalar_dense.default: "the host reads a tensor",
    aten.is_nonzero.default: "the host reads a tensor",
    aten.equal.default: "the host reads a tensor",
    aten.nonzero.default: "a shape depends on values",
    aten.masked_select.default: "a shape depends on values",
    aten.lift_fresh.default: "the host uploads a tensor",
}
UNWRITTEN = {aten.empty.memory_format, aten.empty_like.default, aten.empty_strided.default, aten.new_empty.default}


class Recording(TorchDispatchMode):
    """Every operation inside, as (operation, arguments, results)."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in HOST:
            raise RuntimeError(f"{func} inside a recorded iteration: {HOST[func]}")
        out = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, _tensors(out)))
        return out

    def replay(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, results in self.operations:
                if func in UNWRITTEN:
                    continue
                given = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs)) if not t._is_zerotensor()}
                for result, again in zip(results, _tensors(func(*args, **kwargs)), strict=True):
                    # A view, or a result that lies in an argument, is where it was already; a symbolic zero is nowhere.
                    if not result._is_zerotensor() and result.untyped_storage().data_ptr() not in given:
                        result.detach().copy_(again)

    def reset(self) -> None:
        self.operations.clear()


def recorder(persistent: Callable[[], Sequence[Tensor]]) -> Callable[[Callable[[], T]], tuple[T, Recording]]:
    """To hand to GraphedIteration. Recording on a GPU computes nothing: here what it did to `persistent` is undone."""

    def record(work: Callable[[], T]) -> tuple[T, Recording]:
        held = list(persistent())
        before = [tensor.detach().clone() for tensor in held]
        recording = Recording()
        with recording:
            result = work()
        assert len(list(persistent())) == len(held), "recorded work made state: a replay would not find it"
        for tensor, value in zip(held, before, strict=True):
            tensor.detach().copy_(value)
        return result, recording

    return record


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]
