"""Exported graphs, chained by the names in their manifest, give the net's logits on real images, and can stop."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dataloading.config import CIFAR10_MEAN, CIFAR10_STD, DataConfig
from trainer.config import Config, resolve
from trainer.evaluation.trained_net import TrainedNet, read_trained_net
from trainer.export import command
from trainer.export.command import export_run, validation_images
from trainer.export.graphs import read_graph
from trainer.export.stage import Link, chain
from trainer.import_checkpoint import import_checkpoint
from trainer.models.authors_names import to_authors
from trainer.models.build import build_model
from trainer.models.config import ModelConfig
from trainer.models.multi_exit import MultiExitNet
from trainer.run.folder import RunFolder

# As small as nets with several scales get: each graph takes seconds to write.
_MODELS = {
    "msdnet": ModelConfig(
        num_exits=2, first_channels=4, growth=4, growth_factors=(1, 2), bottleneck_factors=(1, 2), classifier_channels=4
    ),
    "ranet": ModelConfig(
        net="ranet",
        num_exits=2,
        first_channels=4,
        growth=4,
        growth_factors=(2, 1),
        bottleneck_factors=(2, 1),
        classifier_channels=4,
        scales=(1, 2),
        blocks=(1, 2),
    ),
}


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A published checkpoint of each net, with random weights and statistics of its own activations."""
    folder = tmp_path_factory.mktemp("nets")
    for name, model in _MODELS.items():
        torch.manual_seed(2)
        net = build_model(model, 10)
        with torch.no_grad():
            for _ in range(8):
                net(torch.randn(32, 3, 16, 16))
        torch.save(to_authors(model, net.state_dict()), folder / f"{name}.pth")
    return {name: folder / f"{name}.pth" for name in _MODELS}


@pytest.fixture
def runs(nets: dict[str, Path], tmp_path: Path, data_folder: Path) -> dict[str, Path]:
    """A run of each net on CIFAR-10's images."""
    data = DataConfig(
        path=str(data_folder / "cifar10-jpeg.tar"),
        augmentation="cifar",
        image_size=16,
        mean=CIFAR10_MEAN,
        std=CIFAR10_STD,
        num_threads=1,
    )
    for name, file in nets.items():
        import_checkpoint(file, Config(name, _MODELS[name], data), tmp_path / name)
    return {name: tmp_path / name for name in nets}


def _walk(folder: Path, images: Tensor) -> list[Tensor]:
    """Every exit's logits, by the manifest alone."""
    manifest = json.loads((folder / "manifest.json").read_text())
    known, logits = {"images": images}, []
    for row in manifest["exits"]:
        file = folder / row["file"]
        assert hashlib.sha256(file.read_bytes()).hexdigest() == row["sha256"]
        graph = read_graph(file, [one["name"] for one in row["inputs"]], [one["name"] for one in row["outputs"]])
        known = graph(known)
        for one in row["outputs"]:
            assert list(known[one["name"]].shape[1:]) == one["shape"][1:]
        logits.append(known[f"logits_{row['exit']}"])
    return logits


@pytest.mark.parametrize(("name", "kind"), [("msdnet", "onnx"), ("ranet", "onnx"), ("msdnet", "torch")])
def test_every_exit_matches_on_real_images(runs: dict[str, Path], name: str, kind: str) -> None:
    manifest = export_run(runs[name], kind, num_images=100)
    assert manifest["checked_on_images"] == 100
    assert all(row["largest_difference"] < 1e-4 for row in manifest["exits"])
    trained = read_trained_net(runs[name], torch.device("cpu"))
    images = validation_images(trained, "", 100)
    with torch.no_grad():
        torch.testing.assert_close(_walk(Path(manifest["folder"]), images), trained.net(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("recipe", ["cifar10-msdnet-5exits", "cifar10-ranet-c1"])
def test_published_nets_match_on_real_images(recipe: str, tmp_path: Path, data_folder: Path) -> None:
    """At their own sizes: random weights, statistics of real images, the authors' names."""
    config = resolve(recipe, [f"data.path={data_folder / 'cifar10-jpeg.tar'}", "data.num_threads=1"])
    torch.manual_seed(2)
    net = build_model(config.model, 10)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = None  # the mean over all batches
    images = validation_images(TrainedNet(config, net, (), 0), "", 128)
    assert images.shape == (128, 3, 32, 32)
    with torch.no_grad():
        for batch in images.split(32):
            net(batch)
        logits = net.eval()(images[:32])
    assert all(one.std(dim=0).mean() > 0.02 for one in logits), "images must tell exits apart, or any graph would do"
    torch.save(to_authors(config.model, net.state_dict()), tmp_path / "published.pth")
    import_checkpoint(tmp_path / "published.pth", config, tmp_path / "run")
    manifest = export_run(tmp_path / "run", "onnx", num_images=100)
    assert (manifest["checked_on_images"], len(manifest["exits"])) == (100, config.model.num_exits)
    assert all(row["largest_difference"] < 1e-4 for row in manifest["exits"])


def test_a_chain_may_end_at_an_earlier_exit(earlybird: Any, runs: dict[str, Path], tmp_path: Path) -> None:
    arguments = ("export", runs["msdnet"], "--format", "torch", "--exit", 1, "--images", 5, "--json")
    manifest = earlybird(*arguments).json
    assert [row["file"] for row in manifest["exits"]] == ["exit-1.pt2"]
    assert [one["name"] for one in manifest["exits"][-1]["outputs"]] == ["logits_1"]
    again = earlybird(*arguments)
    assert (again.code, again.err.count("\n")) == (2, 1)
    assert "is there already" in again.err
    assert "exits 1 to 2" in earlybird(*arguments[:5], 3, "--out", tmp_path / "other").err


def test_thresholds_are_those_of_the_exported_net(runs: dict[str, Path]) -> None:
    row = {"ratio": 1.0, "thresholds": [0.5, -1e8], "mul_adds": 1e6, "heldout_top1": 60.0}
    folder = RunFolder(runs["msdnet"])
    folder.write_evaluation({"iteration": 7, "budgeted": [row]})
    with pytest.raises(ValueError, match="thresholds of iteration 7, and its newest checkpoint is of iteration 0"):
        export_run(runs["msdnet"], "torch", num_images=4)
    assert export_run(runs["msdnet"], "torch", last_exit=1, num_images=4)["thresholds"] == [], "a part has none"
    folder.write_thresholds({"iteration": 0, "budgets": [row | {"exit_shares": [1.0, 0.0]}]})
    manifest = export_run(runs["msdnet"], "torch", out=runs["msdnet"] / "whole", num_images=4)
    assert manifest["thresholds"] == [row]


def test_graphs_that_differ_are_not_left_behind(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def altered(net: MultiExitNet, num_exits: int, image_size: int) -> list[Link]:
        links = chain(net, num_exits, image_size)
        links[1].stage.net.get_submodule("classifiers.1.linear").bias.data += 0.01
        return links

    monkeypatch.setattr(command, "chain", altered)
    with pytest.raises(ValueError, match="exit 2 differs from the net by"):
        export_run(runs["msdnet"], "torch", num_images=4)
    assert sorted(path.name for path in runs["msdnet"].iterdir()) == ["checkpoints", "config.json"]
