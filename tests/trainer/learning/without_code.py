"""Compiling without writing code, which takes most of its time: what is traced and differentiated runs as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from unittest.mock import patch

import torch


@contextmanager
def without_code() -> Iterator[list[torch.fx.GraphModule]]:
    """Yields the tangents' graphs, as they are made."""
    graphs: list[torch.fx.GraphModule] = []

    def traced(*given):
        graphs.append(given[-1]())
        return graphs[-1]

    with (
        patch.object(torch, "compile", partial(torch.compile, backend="aot_eager")),
        patch("trainer.learning.compiled_tangents.compiled_graph", traced),
    ):
        yield graphs
