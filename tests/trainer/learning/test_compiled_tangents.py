"""A compiled tangent pass is the eager one, at whatever the net's state has become ("aot_eager": all but code)."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from trainer.learning.compiled_tangents import CompiledTangents
from trainer.learning.forward import untracked_batch_norm
from trainer.learning.precision import PrecisionConfig, resolve_precision
from trainer.learning.tangent_replay import pushforward
from trainer.models.config import msdnet_cifar
from trainer.recipes.demo import demo
from trainer.run.build import build_net


@pytest.mark.parametrize("batch_norm", ["batch", "running"])
def test_running_statistics_are_read_not_kept(batch_norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **how: compile_(module, backend="aot_eager", **how))
    model = dataclasses.replace(
        msdnet_cifar(2), first_channels=4, growth=4, classifier_channels=8, base=1, step=1, batch_norm=batch_norm
    )
    config = dataclasses.replace(demo(), model=model, precision=PrecisionConfig(dtype="float64"))
    net = build_net(config, 5, resolve_precision(config.precision, torch.device("cpu")))
    at = {name: parameter.detach() for name, parameter in net.named_parameters()}
    moves = {name: torch.randn_like(parameter) for name, parameter in at.items()}
    images, compiled, seen = torch.randn(4, 3, 32, 32, dtype=torch.float64), CompiledTangents(net), []
    with torch.no_grad(), untracked_batch_norm(net):
        for _ in range(2):
            got, want = compiled(images, at, moves), pushforward(net, images, at, moves)
            for ours, theirs in zip([*got[0], *got[1]], [*want[0], *want[1]], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
            seen.append(want[1][0])
            for name, buffer in net.named_buffers():
                if "running" in name:
                    buffer.mul_(1.5).add_(0.1)
    torch._dynamo.reset()
    assert torch.equal(*seen) is (batch_norm == "batch")
