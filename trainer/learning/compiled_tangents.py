"""The tangent pass of a compiled net: recorded pass and replay, traced together and compiled as one graph.

A compiled net has no leaves that could keep what their tangent rules need, so its pass runs again, compiled too. What
is traced are the operations of eager mode, by the rules of `tangent_replay`; the compiler gets them as one flat graph,
not by way of torch.compile, whose reading of nine thousand operations takes twice as long as making them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

import torch
from torch import Tensor, nn
from torch.func import functional_call

from trainer.learning.compiled_graph import Graph, compiled_graph
from trainer.learning.layout import laid_out_as
from trainer.learning.tangent_replay import pushforward

Logits = Sequence[Tensor]


class CompiledTangents:
    """`pushforward` of one net, compiled (or loaded) at its first call for each shape of images."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._graphs: dict[object, Graph] = {}

    def __call__(self, images: Tensor, at: Mapping[str, Tensor], moves: Mapping[str, Tensor]) -> tuple[Logits, Logits]:
        """(logits, their tangents), K tensors [n, C] each, at the parameters `at` along `moves`.

        Call without grad, under the autocast that the net's passes run in: its casts are traced.
        """
        values = [*at.values(), *map(laid_out_as, at.values(), moves.values()), *self._unmoved(at).values()]
        key = (images.shape, images.stride(), images.dtype)
        if key not in self._graphs:
            self._graphs[key] = compiled_graph(
                "tangent pass", self.module, [images, *values], lambda: self.traced(images, at, values)
            )
        with torch.autocast(images.device.type, enabled=False):
            found = self._graphs[key](images, *values)
        return found[: len(found) // 2], found[len(found) // 2 :]

    def traced(self, images: Tensor, at: Mapping[str, Tensor], values: Sequence[Tensor]) -> torch.fx.GraphModule:
        """All operations of (images, *values) -> [*logits, *tangents]."""
        from torch.fx.experimental.proxy_tensor import make_fx  # takes seconds to import

        pass_, names, unmoved = _Pass(self.module), tuple(at), tuple(self._unmoved(at))

        def pushed(images: Tensor, *values: Tensor) -> list[Tensor]:
            n = len(names)
            parameters, direction = (dict(zip(names, part, strict=True)) for part in (values[:n], values[n : 2 * n]))
            held = {f"module.{name}": value for name, value in zip(unmoved, values[2 * n :], strict=True)}
            logits, tangents = functional_call(pass_, held, (images, parameters, direction))
            return [*logits, *tangents]

        return make_fx(pushed, tracing_mode="fake")(images, *values)

    def _unmoved(self, at: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What else a pass may read: running statistics, parameters that are not trained."""
        named = chain(self.module.named_parameters(), self.module.named_buffers())
        return {name: value.detach() for name, value in named if name not in at}


class _Pass(nn.Module):
    """`pushforward` as a module, so that what the net holds can be another's."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, images: Tensor, at: dict[str, Tensor], moves: dict[str, Tensor]) -> tuple[Logits, Logits]:
        return pushforward(self.module, images, at, moves)
