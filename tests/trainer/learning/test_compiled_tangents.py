"""The traced tangent pass is the eager one, at whatever the net's state has become."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.trainer.learning.without_code import without_code
from trainer.learning.compiled_tangents import CompiledTangents
from trainer.learning.forward import untracked_batch_norm
from trainer.learning.precision import PrecisionConfig, resolve_precision
from trainer.learning.tangent_replay import pushforward
from trainer.models.compiled_layers import KeepingNet
from trainer.models.config import msdnet_cifar
from trainer.models.multi_exit import MultiExitNet
from trainer.recipes.demo import demo
from trainer.run.build import build_net


def small(batch_norm: str, num_exits: int = 2) -> MultiExitNet:
    model = dataclasses.replace(
        msdnet_cifar(num_exits), first_channels=4, growth=4, classifier_channels=8, batch_norm=batch_norm
    )
    config = dataclasses.replace(demo(), model=model, precision=PrecisionConfig(dtype="float64"))
    return build_net(config, 5, resolve_precision(config.precision, torch.device("cpu")))


@pytest.mark.parametrize("batch_norm", ["batch", "running"])
def test_all_that_changes_is_an_input(batch_norm: str) -> None:
    net = small(batch_norm)
    at = {name: parameter.detach() for name, parameter in net.named_parameters()}
    moves = {name: torch.randn_like(parameter) for name, parameter in at.items()}
    images, compiled, seen = torch.randn(4, 3, 32, 32, dtype=torch.float64), CompiledTangents(net), []
    with without_code() as graphs, torch.no_grad(), untracked_batch_norm(net):
        for _ in range(2):
            got, want = compiled(images, at, moves), pushforward(net, images, at, moves)
            for ours, theirs in zip([*got[0], *got[1]], [*want[0], *want[1]], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
            seen.append(want[1][0])
            for name, buffer in net.named_buffers():
                if "running" in name:
                    buffer.mul_(1.5).add_(0.1)
    assert torch.equal(*seen) is (batch_norm == "batch")
    assert len(graphs) == 1
    assert not [node for node in graphs[0].graph.nodes if node.op == "get_attr"]


@pytest.mark.parametrize("batch_norm", ["batch", "running"])
def test_a_kept_pass_is_followed_without_its_convolutions(batch_norm: str) -> None:
    """Where the pass kept the norms' moments too, as on a CPU, and where it kept only what they read."""
    net, images = small(batch_norm, num_exits=1), torch.randn(4, 3, 32, 32, dtype=torch.float64)
    torch._dynamo.reset()
    logits, read = torch.compile(KeepingNet(net), backend="aot_eager", fullgraph=True)(images)
    assert len(read) == sum(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    assert not any(tensor.requires_grad for one in read for tensor in one)
    assert {len(one) for one in read} == ({3} if batch_norm == "batch" else {1})
    at = {name: parameter.detach() for name, parameter in net.named_parameters()}
    moves = {name: torch.randn_like(parameter) for name, parameter in at.items()}
    with without_code() as graphs, torch.no_grad(), untracked_batch_norm(net):
        want = pushforward(net, images, at, moves)
        for given in (read, [one[:1] for one in read], ()):
            got = CompiledTangents(net)(images, at, moves, given)
            for ours, theirs in zip([*got[0], *got[1]], [*want[0], *want[1]], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(logits[0].detach(), want[0][0], rtol=1e-9, atol=1e-11)
    *following, anew = (_products(graph) for graph in graphs)
    assert {anew - here for here in following} == {sum(isinstance(module, nn.Conv2d) for module in net.modules())}


def _products(graph: torch.fx.GraphModule) -> int:
    """Convolutions and matrix products that something reads."""
    graph.graph.eliminate_dead_code()
    names = [str(node.target) for node in graph.graph.nodes]
    return sum(any(kind in name for kind in ("convolution", "mm")) for name in names)


def test_code_computes_it_and_is_loaded_by_the_next_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    net = small("batch", num_exits=1)
    at = {name: parameter.detach() for name, parameter in net.named_parameters()}
    for seed in range(2):
        torch.manual_seed(seed)
        moves = {name: torch.randn_like(parameter) for name, parameter in at.items()}
        images = torch.randn(4, 3, 32, 32, dtype=torch.float64)
        with torch.no_grad(), untracked_batch_norm(net):
            got, want = CompiledTangents(net)(images, at, moves), pushforward(net, images, at, moves)
        for ours, theirs in zip([*got[0], *got[1]], [*want[0], *want[1]], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
        monkeypatch.setattr(CompiledTangents, "traced", None)  # the second is loaded
