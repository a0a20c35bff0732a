"""Checkpoints in the authors' naming become run folders whose nets give the authors' logits."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trainer.config import Config, read_config, resolve, to_dict
from trainer.evaluation.trained_net import read_trained_net
from trainer.import_checkpoint import find_state, import_checkpoint, read_plain
from trainer.learning.precision import PrecisionConfig
from trainer.models.authors_names import model_config_from_authors_options, to_authors
from trainer.models.build import build_model
from trainer.models.config import ModelConfig
from trainer.run.checkpoint import load_latest
from trainer.settings import setting_names

_SMALL = ModelConfig(num_exits=2, first_channels=4, growth=2, classifier_channels=4)


def _published(model: ModelConfig, num_classes: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return to_authors(model, build_model(model, num_classes).state_dict())


@pytest.mark.parametrize("prefix", ["", "module.", "model.module."])
def test_the_authors_nets_give_their_logits(vectors_folder: Path, tmp_path: Path, prefix: str) -> None:
    files = sorted(vectors_folder.glob("model_*.npz"))
    assert files
    for file in files:
        numbers = np.load(file)
        weights = {
            prefix + name.removeprefix("weights/"): torch.from_numpy(numbers[name])
            for name in numbers
            if name.startswith("weights/")
        }
        published = {"epoch": 300, "best_prec1": np.float64(72.5), "state_dict": weights, "optimizer": {"state": {}}}
        torch.save(published, tmp_path / "checkpoint.pth.tar")
        model = model_config_from_authors_options(json.loads(str(numbers["config"])))
        config = Config(file.stem, model, precision=PrecisionConfig(dtype="float64"))
        found = import_checkpoint(tmp_path / "checkpoint.pth.tar", config, tmp_path / file.stem)
        assert found["key"] == "state_dict"
        trained = read_trained_net(tmp_path / file.stem, torch.device("cpu"))
        assert len(trained.classes) == numbers["logits_eval"].shape[2]
        with torch.no_grad():
            logits = torch.stack(trained.net(torch.from_numpy(numbers["images"]).double()))
        torch.testing.assert_close(logits, torch.from_numpy(numbers["logits_eval"]), rtol=1e-9, atol=1e-9)


def test_an_imported_run_is_evaluated_as_the_run_it_came_from(
    earlybird: Any, tmp_path: Path, image_folder: Path
) -> None:
    assert earlybird.train(tmp_path / "own", data=image_folder).code == 0
    checkpoint = load_latest(tmp_path / "own")
    assert checkpoint is not None
    config = read_config(tmp_path / "own" / "config.json")
    ours = {name.removeprefix("model."): t for name, t in checkpoint.tensors.items() if name.startswith("model.")}
    old = {name: t for name, t in to_authors(config.model, ours).items() if "num_batches_tracked" not in name}
    torch.save(old, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    settings = [
        word
        for name, value in setting_names(config).items()
        if name.startswith(("data.", "model.", "run.evaluation")) and name not in ("data.path", "data.source")
        for word in ("--set", f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}")
    ]
    name = ("import-checkpoint", tmp_path / "old.pth", "--recipe", "demo", "--run-folder", tmp_path / "imported")
    assert earlybird(*name, *settings, "--data", image_folder).code == 0
    evaluations = [earlybird("evaluate", tmp_path / run, "--json") for run in ("own", "imported")]
    assert [outcome.code for outcome in evaluations] == [0, 0]
    assert evaluations[0].json == evaluations[1].json
    assert read_trained_net(tmp_path / "imported", torch.device("cpu")).classes == ("ant", "bee", "cat")
    # Without --data it does not know its images: whatever has as many classes may score it.
    name = (*name[:-1], tmp_path / "unnamed")
    assert earlybird(*name, *settings).code == 0
    assert earlybird("evaluate", tmp_path / "unnamed", "--data", image_folder, "--json").json == evaluations[0].json
    assert read_trained_net(tmp_path / "unnamed", torch.device("cpu")).classes == ("0", "1", "2")
    again = earlybird(*name, *settings)
    assert again.code == 2
    assert "holds a run already" in again.err


class _Runs:
    """Pickled, it calls os.system when it is read."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_holds_code_is_refused_and_none_of_it_runs(earlybird: Any, tmp_path: Path, zipped: bool) -> None:
    held = {"state_dict": _published(_SMALL), "args": _Runs(f"touch {tmp_path / 'ran'}")}
    torch.save(held, tmp_path / "bad.pth", _use_new_zipfile_serialization=zipped)
    name = ("import-checkpoint", tmp_path / "bad.pth", "--recipe", "cifar10-msdnet-5exits")
    outcome = earlybird(*name, "--run-folder", tmp_path / "run")
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert "holds code" in outcome.err
    assert "system" in outcome.err
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no file of plain values"),
        (b"PK\x03\x04 cut off", "no file of plain values"),
        ({"state_dict": {"fc.weight": torch.ones(2)}}, "holds no state dict with an entry classifier.0.linear.weight"),
        ([1, 2], "holds no state dict"),
        (_published(dataclasses.replace(_SMALL, num_exits=3)), "unexpected, first"),
        (_published(dataclasses.replace(_SMALL, growth=4)), "belongs to another net"),
        (_published(_SMALL, num_classes=4), "has 4 classes, and the images have 3"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, content: Any, said: str) -> None:
    file = tmp_path / "file.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(ValueError, match=said) as refused:
        import_checkpoint(file, Config("small", _SMALL), tmp_path / "run", ("ant", "bee", "cat"))
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def _altered(name: str, change: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    state = _published(_SMALL)
    return state | {name: change(state[name])}


_WEIGHT, _BIAS = "classifier.1.linear.weight", "classifier.0.linear.bias"


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (_altered(_WEIGHT, lambda weight: weight.to_sparse()), f"{_WEIGHT} is no dense tensor"),
        (_altered(_WEIGHT, lambda weight: weight.to("meta")), f"{_WEIGHT} is no dense tensor"),
        (
            _altered(_WEIGHT, lambda weight: weight.to(torch.int32)),
            f"{_WEIGHT} is int32; weights must be one of float32",
        ),
        (_altered(_WEIGHT, lambda weight: weight.to(torch.complex64)), f"{_WEIGHT} is complex64"),
        (_altered(_WEIGHT, lambda weight: weight.fill_(torch.nan)), f"{_WEIGHT} holds values that are not finite"),
        (_altered("blocks.0.0.layers.0.net.1.running_var", lambda v: v.fill_(torch.inf)), "running_var holds values"),
        (_altered(_BIAS, lambda bias: bias.sum()), "bias has shape (); it must hold one number a class"),
        (_altered(_BIAS, lambda bias: bias[:1].expand(2**40)), "bias has shape (1099511627776,)"),
        (_altered(_BIAS, lambda bias: bias[:0]), "bias has shape (0,)"),
    ],
)
def test_tensors_that_are_no_weights(tmp_path: Path, state: dict[str, Tensor], said: str) -> None:
    torch.save(state, tmp_path / "file.pth")
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        import_checkpoint(tmp_path / "file.pth", Config("small", _SMALL), tmp_path / "run")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_file_that_holds_itself(tmp_path: Path) -> None:
    held: dict[str, Any] = {"state_dict": _published(_SMALL)}
    held["again"] = {"held": held}
    file = tmp_path / "file.pth"
    torch.save(held, file)
    assert import_checkpoint(file, Config("small", _SMALL), tmp_path / "run")["key"] == "state_dict"
    held["state_dict"] = {}
    torch.save(held, file)
    with pytest.raises(ValueError, match="holds no state dict"):
        import_checkpoint(file, Config("small", _SMALL), tmp_path / "other")


@pytest.mark.parametrize(
    ("keys", "chosen"),
    [
        (["ema", "state_dict"], "state_dict"),
        (["ema_state_dict", "net"], "net"),
        (["best", "model"], "model"),
        (["average", "final_model"], "final_model"),
        (["ema"], "ema"),
        (["first", "second"], None),
        (["state_dict", "model"], None),
    ],
)
def test_of_several_nets_the_one_to_import(tmp_path: Path, keys: list[str], chosen: str | None) -> None:
    torch.save({key: _published(_SMALL) for key in keys}, tmp_path / "file.pth")
    content, config = read_plain(tmp_path / "file.pth"), Config("small", _SMALL)
    if chosen is not None:
        assert find_state(content, config, tmp_path / "file.pth")[0] == chosen
        return
    with pytest.raises(ValueError, match=f"holds several nets, under {keys[0]} and {keys[1]}; save the one"):
        find_state(content, config, tmp_path / "file.pth")


def test_the_default_run_folder(earlybird: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = "cifar10-msdnet-5exits"
    torch.save(_published(resolve(recipe, []).model), tmp_path / "file.pth")
    done = earlybird("import-checkpoint", "file.pth", "--recipe", recipe)
    assert done.code == 0, done.err
    assert load_latest(tmp_path / "runs" / f"{recipe}-imported") is not None
    assert f"Next: earlybird evaluate runs/{recipe}-imported" in done.out


def test_what_was_imported_says_so(tmp_path: Path) -> None:
    torch.save(_published(_SMALL), tmp_path / "plain.pth")
    config = Config("small", _SMALL)
    import_checkpoint(tmp_path / "plain.pth", config, tmp_path / "run")
    checkpoint = load_latest(tmp_path / "run")
    assert checkpoint is not None
    assert checkpoint.iteration == 0
    assert checkpoint.meta["imported"] == "plain.pth"
    assert checkpoint.meta["config"] == to_dict(config)
