"""A kept graph is what would be compiled again, and is asked for only where nothing it follows from has changed."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from trainer.learning import compiled_graph as module_under_test
from trainer.learning.compiled_graph import compiled_graph, fingerprint


class Scaled(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor, y: Tensor) -> list[Tensor]:
        return [self.factor * x @ y, (x - y).relu()]


def test_kept_graph_runs_without_its_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    caplog.set_level(logging.INFO)
    net, given, traces = Scaled(3.0), [torch.randn(8, 8), torch.randn(8, 8)], []

    def trace() -> torch.fx.GraphModule:
        traces.append(None)
        return make_fx(net, tracing_mode="fake")(*given)

    want = net(*given)
    for _ in range(2):
        got = compiled_graph("a pass", net, given, trace)(*given)
        torch.testing.assert_close(list(got), want)
        assert len(traces) == 1
    assert "is loaded from" in caplog.text

    (kept,) = (tmp_path / "earlybird").iterdir()
    kept.write_bytes(kept.read_bytes()[:1000])
    torch.testing.assert_close(list(compiled_graph("a pass", net, given, trace)(*given)), want)
    assert len(traces) == 2
    assert "cannot be loaded" in caplog.text
    torch.testing.assert_close(list(compiled_graph("a pass", net, given, trace)(*given)), want)
    assert len(traces) == 2


def test_folder_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    (tmp_path / "earlybird").write_text("a file")
    net, given = Scaled(2.0), [torch.randn(4, 4), torch.randn(4, 4)]
    graph = compiled_graph("a pass", net, given, lambda: make_fx(net, tracing_mode="fake")(*given))
    torch.testing.assert_close(list(graph(*given)), net(*given))
    assert "compiles the a pass again" in caplog.text


def test_module_that_cannot_be_told_from_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    net, given = Scaled(2.0), [torch.randn(4, 4), torch.randn(4, 4)]
    net.extra = lambda x: x
    graph = compiled_graph("a pass", net, given, lambda: make_fx(net, tracing_mode="fake")(*given))
    torch.testing.assert_close(list(graph(*given)), net(*given))
    assert "compiled at every start" in caplog.text
    assert not (tmp_path / "earlybird").exists()


CHANGES: dict[str, Callable[[nn.Module, list[Tensor]], object]] = {
    "attribute": lambda net, given: setattr(net, "factor", 4.0),
    "mode": lambda net, given: net.eval(),
    "parameter": lambda net, given: net.register_parameter("p", nn.Parameter(torch.ones(2))),
    "shape": lambda net, given: given.append(torch.ones(3)),
    "layout": lambda net, given: given.__setitem__(0, given[0].T),
    "dtype": lambda net, given: given.__setitem__(0, given[0].double()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_fingerprint_tells_what_a_graph_follows_from(change: str) -> None:
    net, given = Scaled(3.0), [torch.randn(4, 6), torch.randn(6, 4)]
    before = fingerprint(net, given)
    CHANGES[change](net, given)
    assert fingerprint(net, given) != before


def test_fingerprint_tells_settings_and_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, given = Scaled(3.0), [torch.randn(4, 6)]
    before = fingerprint(net, given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fingerprint(net, given) != before
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert fingerprint(net, given) != before
    finally:
        torch.set_num_threads(threads)
    assert fingerprint(net, given) == before
    (tmp_path / "rules.py").write_text("")
    monkeypatch.setattr(module_under_test, "SOURCES", [*module_under_test.SOURCES, tmp_path])
    with_file = fingerprint(net, given)
    (tmp_path / "rules.py").write_text("y = 2")
    assert len({before, with_file, fingerprint(net, given)}) == 3


PRINTED = """
import sys, torch
from trainer.learning.compiled_graph import fingerprint
from trainer.learning.precision import resolve_precision
from trainer.recipes.catalogue import recipe
from trainer.recipes.demo import demo
from trainer.run.build import build_net
for name in sys.argv[1:]:
    net = build_net(recipe(name), 10, resolve_precision(demo().precision, torch.device("cpu")))
    trained = net.head() if hasattr(net, "head") else net
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.rand(()))
    print(fingerprint(trained, [torch.rand(2)]))
"""
NETS = ["cifar10-msdnet-5exits", "cifar10-ranet-c1", "imagenet-msdnet-step4", "demo-imta-finetune"]


def test_nets_of_one_recipe_share_a_graph_in_every_process() -> None:
    printed = [
        subprocess.run(
            [sys.executable, "-c", PRINTED, *NETS],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        for seed in ("1", "2")
    ]
    assert printed[0] == printed[1]
    assert len(set(printed[0])) == len(NETS)
