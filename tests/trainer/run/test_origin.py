"""Both phases of IMTA through the command line: the second begins with the first one's net and leaves it to the bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from trainer.config import read_config
from trainer.import_checkpoint import import_checkpoint
from trainer.models.authors_names import to_authors
from trainer.run.checkpoint import load_latest

Phase = Callable[..., Any]


@pytest.fixture
def phase(earlybird: Any) -> Phase:
    """(which, run, *words) trains that phase of the tiny net."""

    def train(which: str, run: Path, *words: object, data: Path | None = None, settings: tuple[str, ...] = ()) -> Any:
        _, _, *rest = earlybird.arguments(run, *settings, data=data)
        return earlybird("train", f"demo-imta-{which}", *rest, *words)

    return train


def tensors(run: Path) -> dict[str, Tensor]:
    found = load_latest(run)
    assert found is not None
    return found.tensors


def test_both_phases(phase: Phase, earlybird: Any, tmp_path: Path, image_folder: Path) -> None:
    first, second, straight = (tmp_path / name for name in ("first", "second", "straight"))
    assert phase("pretrain", first, data=image_folder).json["status"] == "completed"
    begun = phase("finetune", second, "--from", first, "--max-steps", 2, data=image_folder)
    assert begun.json["status"] == "stopped", begun.err
    config = json.loads((second / "config.json").read_text())
    assert config["origin"]["run"] == str(first)
    assert phase("finetune", straight, "--from", first, data=image_folder).json["status"] == "completed"

    shutil.move(first, tmp_path / "moved")  # a run that has begun needs it no more
    assert phase("finetune", second, data=image_folder).json["status"] == "completed"
    ours, theirs, source = tensors(second), tensors(straight), tensors(tmp_path / "moved")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)

    frozen = [name for name in ours if name.startswith("model.") and ".exit." not in name]
    assert any("running_var" in name for name in frozen)
    for name in frozen:
        from_name = name.replace(".reads.", ".").replace("model.teacher", "model.classifiers.1.linear")
        assert torch.equal(ours[name], source[from_name]), name
    assert not any(name.startswith("optimizer.") and ".exit." not in name for name in ours)
    assert any(name.startswith("weight_net.") for name in ours)

    scores = earlybird("evaluate", second, "--json").json
    assert [row["exit"] for row in scores["anytime"]] == [1, 2]
    assert f"--from {first}" in (second / "report.html").read_text()


def test_real_photographs(phase: Phase, tmp_path: Path) -> None:
    """A stop in the middle of phase 2 and a start without --from end with the same bits."""
    demo = ("data.source=demo", "data.heldout=0.1", "optim.update_batch=16")
    first, stopped, straight = (tmp_path / name for name in ("first", "stopped", "straight"))
    assert phase("pretrain", first, "--max-steps", 4, settings=demo).json["status"] == "stopped"
    for words in (["--from", first, "--max-steps", 2], ["--max-steps", 4]):
        ended = phase("finetune", stopped, *words, settings=demo)
        assert ended.json["status"] == "stopped", ended.err
    phase("finetune", straight, "--from", first, "--max-steps", 4, settings=demo)
    ours, theirs = tensors(stopped), tensors(straight)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_imported_net(phase: Phase, earlybird: Any, tmp_path: Path) -> None:
    """A phase-1 net in the authors' naming, published without images, is begun with like any other."""
    phase("pretrain", tmp_path / "own", "--max-steps", 1)
    config = read_config(tmp_path / "own" / "config.json")
    state = {
        name.removeprefix("model."): value for name, value in tensors(tmp_path / "own").items() if "model." in name
    }
    torch.save(to_authors(config.model, state), tmp_path / "published.pth.tar")
    import_checkpoint(tmp_path / "published.pth.tar", config, tmp_path / "imported")
    ended = phase("finetune", tmp_path / "run", "--from", tmp_path / "imported", "--max-steps", 1)
    assert ended.json["status"] == "stopped", ended.err
    assert torch.equal(tensors(tmp_path / "run")["model.teacher.weight"], state["classifiers.1.linear.weight"])


def test_unweighted_phases(phase: Phase, tmp_path: Path) -> None:
    assert phase("pretrain-baseline", tmp_path / "a", "--max-steps", 1).json["status"] == "stopped"
    ended = phase("finetune-baseline", tmp_path / "b", "--from", tmp_path / "a", "--max-steps", 1)
    assert ended.json["status"] == "stopped", ended.err
    assert not any(name.startswith("weight_net.") for name in tensors(tmp_path / "b"))


def test_refusals(phase: Phase, earlybird: Any, tmp_path: Path) -> None:
    source = tmp_path / "source"
    phase("pretrain", source, "--max-steps", 1)

    def refused(*words: object, which: str = "finetune", settings: tuple[str, ...] = ()) -> str:
        outcome = phase(which, tmp_path / "new", *words, settings=settings)
        assert outcome.code == 2
        assert not (tmp_path / "new").exists()
        return str(outcome.err)

    assert "give --from RUN" in refused()
    assert "no run folder" in refused("--from", tmp_path / "nowhere")
    wide = ("model.growth=4", "model.step=2")
    assert "model.growth is 2 there and 4 here; model.step is 1 there and 2 here" in refused(
        "--from", source, settings=wide
    )
    assert "other images" in refused("--from", source, "--seed", 1)
    assert "model.imta is pretrain" in refused("--from", source, which="pretrain")
    assert "other weights" in refused("--from", source, settings=("origin.weights=0",))
    phase("finetune", tmp_path / "second", "--from", source, "--max-steps", 1)
    assert "collaborating exits already" in refused("--from", tmp_path / "second")
    (source / "summary.json").unlink()
    assert "let it train to its end" in refused("--from", source)


def test_another_origin_is_another_run(phase: Phase, tmp_path: Path) -> None:
    for name, settings in (("a", ()), ("b", ("optim.base_lr=0.05",))):
        phase("pretrain", tmp_path / name, "--max-steps", 1, settings=settings)
    assert phase("finetune", tmp_path / "run", "--from", tmp_path / "a", "--max-steps", 1).code == 0
    other = phase("finetune", tmp_path / "run", "--from", tmp_path / "b")
    assert other.code == 2
    assert "origin.weights" in other.err
