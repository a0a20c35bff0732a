"""Activation checkpointing: less is kept, every number stays."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dataloading.batch import Batch
from trainer.benchmark.iteration import iterate
from trainer.config import Config
from trainer.learning.meta_gradient import MetaConfig
from trainer.learning.optim import OptimConfig
from trainer.learning.precision import PrecisionConfig
from trainer.learning.state import Progress, TrainState
from trainer.models.config import ModelConfig
from trainer.models.weight_net import WeightNetConfig
from trainer.run import snapshot
from trainer.run.build import build_state
from trainer.run.distributed import Ranks

MODEL = ModelConfig(num_exits=3, first_channels=8, growth=4, classifier_channels=16)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors: threads that wait for each other cost more than they bring, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _state(recompute: bool, meta: dict[str, Any], optim: dict[str, Any], **precision: Any) -> TrainState:
    config = Config(
        recipe="test",
        model=MODEL,
        optim=OptimConfig(8, base_batch=64, recompute=recompute, **optim),
        weight_net=WeightNetConfig(width=8),
        meta=MetaConfig(**meta),
        precision=PrecisionConfig(**{"dtype": "float64", **precision}),
    )
    return build_state(config, 10, Progress(0, 100), Ranks(0, 1, 0, 1, torch.device("cpu")))


def _batch(size: int = 16) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, 3, 32, 32, generator=generator, dtype=torch.float64)
    return Batch(images, torch.randint(10, (size,), generator=generator), np.arange(size))


def _held(state: TrainState, batch: Batch) -> int:
    """Bytes that a forward pass keeps for its backward pass, parameters aside."""
    own = {p.untyped_storage().data_ptr() for p in state.network.parameters.values()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = state.network.logits(batch.images)
    assert len(logits) == MODEL.num_exits
    return sum(kept.values())


@pytest.mark.parametrize(
    ("meta", "optim"),
    [({}, {}), ({"schedule": "online"}, {}), ({"form": "double_backward"}, {}), ({}, {"accumulation": 2})],
    ids=["exact", "online", "double_backward", "accumulated"],
)
def test_three_iterations_end_alike(meta: dict[str, Any], optim: dict[str, Any]) -> None:
    """Weights, momentum, running statistics and their counters, weight net, its Adam; to float64's last digits."""
    states = [_state(recompute, meta, optim) for recompute in (False, True)]
    for state in states:
        for _ in range(3):
            iterate(state, _batch())
    (theirs, _), (ours, _) = (snapshot.take(state) for state in states)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        if "generator" not in name:
            torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-12, msg=name)


def test_less_is_kept() -> None:
    kept, recomputed = (_held(_state(recompute, {}, {}), _batch()) for recompute in (False, True))
    assert recomputed < 0.6 * kept


def test_a_compiled_net_decides_for_itself() -> None:
    with pytest.raises(ValueError, match=r"optim\.recompute is on, but precision\.compile"):
        _state(True, {}, {}, compile=True)


def test_evaluation_is_untouched() -> None:
    state = _state(True, {}, {})
    module = state.network.module.eval()
    with torch.no_grad():
        ours = module(_batch().images)
        module.recompute = False
        theirs = module(_batch().images)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
