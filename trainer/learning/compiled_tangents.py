"""The tangent pass of a compiled net: recorded pass and replay, traced together and compiled as one graph.

A compiled net has no leaves that could keep what their tangent rules need. Its pass gives what its batch-norms read
(`compiled_layers.KeepingNet`), which is what its convolutions computed; the little that lies between runs again here.
Where a half's pass is not kept, all of it does.

What is traced are the operations of eager mode, by the rules of `tangent_replay`; the compiler gets them as one flat
graph, not by way of torch.compile, whose reading of nine thousand operations takes twice as long as making them.
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
from trainer.models.compiled_layers import NormInput

Logits = Sequence[Tensor]


class CompiledTangents:
    """`pushforward` of one net, compiled (or loaded) at its first call for each shape of images."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._graphs: dict[object, Graph] = {}
        self._num_norms = sum(isinstance(layer, nn.BatchNorm2d) for layer in module.modules())

    def __call__(
        self, images: Tensor, at: Mapping[str, Tensor], moves: Mapping[str, Tensor], given: Sequence[NormInput] = ()
    ) -> tuple[Logits, Logits]:
        """(logits, their tangents), K tensors [n, C] each, at the parameters `at` along `moves`.

        given: what batch-norms read in the pass at `at`, where it was kept. Call without grad, under the autocast that
        the net's passes run in: its casts are traced.
        """
        if len(given) != self._num_norms:  # one ran otherwise than by `norm_relu`
            given = ()
        values = [*at.values(), *map(laid_out_as, at.values(), moves.values()), *self._unmoved(at).values()]
        values += chain.from_iterable(given)
        key = (images.shape, images.stride(), images.dtype, len(given))
        if key not in self._graphs:
            self._graphs[key] = compiled_graph(
                "tangent pass", self.module, [images, *values], lambda: self.traced(images, at, values, given)
            )
        with torch.autocast(images.device.type, enabled=False):
            found = self._graphs[key](images, *values)
        return found[: len(found) // 2], found[len(found) // 2 :]

    def traced(
        self, images: Tensor, at: Mapping[str, Tensor], values: Sequence[Tensor], given: Sequence[NormInput]
    ) -> torch.fx.GraphModule:
        """All operations of (images, *values) -> [*logits, *tangents]."""
        from torch.fx.experimental.proxy_tensor import make_fx  # takes seconds to import

        pass_, names, unmoved = _Pass(self.module), tuple(at), tuple(self._unmoved(at))

        def pushed(images: Tensor, *values: Tensor) -> list[Tensor]:
            following = iter(values)
            parameters, direction = (dict(zip(names, following, strict=False)) for _ in range(2))
            held = {f"module.{name}": next(following) for name in unmoved}
            read = [tuple(next(following) for _ in one) for one in given]
            logits, tangents = functional_call(pass_, held, (images, parameters, direction, read))
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

    def forward(
        self, images: Tensor, at: dict[str, Tensor], moves: dict[str, Tensor], given: list[NormInput]
    ) -> tuple[Logits, Logits]:
        return pushforward(self.module, images, at, moves, given)
