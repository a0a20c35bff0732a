"""The tangent pass of a compiled net: recorded pass and replay, traced together and compiled as one graph.

A compiled net has no leaves that could keep what their tangent rules need, so its pass runs again, compiled too. What
is traced are the operations of eager mode, by the rules of `tangent_replay`; the compiler gets them as one flat graph.

The trace is made anew at every start: of ImageNet's step 4 the first meta step takes half a minute, code in the cache.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from trainer.learning.layout import laid_out_as
from trainer.learning.tangent_replay import pushforward

logger = logging.getLogger(__name__)

Logits = Sequence[Tensor]


class CompiledTangents:
    """`pushforward` of one net, compiled at its first call for each shape of images."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._graphs: dict[object, Callable[..., tuple[Logits, Logits]]] = {}

    def __call__(self, images: Tensor, at: Mapping[str, Tensor], moves: Mapping[str, Tensor]) -> tuple[Logits, Logits]:
        """(logits, their tangents), K tensors [n, C] each, at the parameters `at` along `moves`.

        Call without grad, under the autocast that the net's passes run in: its casts are traced.
        """
        given = (images, list(at.values()), list(map(laid_out_as, at.values(), moves.values())))
        key = (images.shape, images.stride(), images.dtype)
        if key not in self._graphs:
            self._graphs[key] = self._compiled(tuple(at), given)
        with torch.autocast(images.device.type, enabled=False):
            return self._graphs[key](*given)

    def _compiled(
        self, names: tuple[str, ...], given: tuple[Tensor, list[Tensor], list[Tensor]]
    ) -> Callable[..., tuple[Logits, Logits]]:
        from torch.fx.experimental.proxy_tensor import make_fx  # takes seconds to import

        def pushed(images: Tensor, at: list[Tensor], moves: list[Tensor]) -> tuple[Logits, Logits]:
            named = (dict(zip(names, values, strict=True)) for values in (at, moves))
            return pushforward(self.module, images, *named)

        logger.info("precision.compile: the first meta step compiles its tangent pass, minutes the first time")
        # The net's running statistics, where it normalises by them, stay the graph's own attributes: read, not copied.
        traced = make_fx(pushed, tracing_mode="fake", _allow_non_fake_inputs=True)(*given)
        return torch.compile(traced, fullgraph=True, dynamic=False)
