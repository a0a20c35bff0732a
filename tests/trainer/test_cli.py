"""What a user sees: one clear line for input that cannot work, JSON for programs."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def refused(outcome: Any, *said: str, code: int = 2) -> None:
    """One line on standard error that says all of `said`; nothing on standard output."""
    assert (outcome.code, outcome.out) == (code, "")
    *before, line = outcome.err.splitlines()
    assert line.startswith("earlybird: ")
    assert code == 3 or all(text.startswith("reading headers:") for text in before), outcome.err
    for text in said:
        assert text in line, line


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Run folders that the first test in need of one trains."""
    return {"parent": tmp_path_factory.mktemp("finished")}


@pytest.fixture
def trained(finished: dict[str, Path], earlybird: Any, image_folder: Path, tmp_path: Path) -> Path:
    """A copy of a run of 4 iterations, with checkpoints of iterations 2 and 4."""
    original = finished["parent"] / "run"
    if not (original / "summary.json").exists():
        outcome = earlybird.train(original, "checkpoint.every=2steps", data=image_folder, more=["--max-steps", 4])
        assert outcome.code == 0, outcome.err
    return Path(shutil.copytree(original, tmp_path / "trained"))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["meta.intervall=3"], ["'meta.intervall'", "did you mean meta.interval?", "earlybird show"]),
        (["meta.interval=0"], ["meta.interval is 0", "at least 1"]),
        (["meta.interval=often"], ["meta.interval is 'often'", "whole number"]),
        (["sample_weights.centre=cols"], ["'cols'", "row | col | mat", "did you mean col?"]),
        (["meta.interval"], ["--set meta.interval", "meta.interval=10"]),
        (["optim.accumulation=3"], ["optim.accumulation is 3", "divide optim.update_batch (8)"]),
        (["optim.update_batch=1000"], ["72 images", "2000", "--set optim.update_batch=36"]),
        (["precision.dtype=fp16"], ["precision.dtype is fp16", "use bf16 or float32"]),
        (["optim.backend=apex"], ["optim.backend is apex", "optim.backend=torch"]),
        (["data.decode=gpu"], ["data.decode is gpu", "data.decode=cpu"]),
        (["data.path="], ["data.path is empty", "--data PATH", "data.source=demo"]),
        (["checkpoint.every=often"], ["checkpoint.every is 'often'", "500steps"]),
        (["telemetry.port=70000"], ["telemetry.port is 70000", "65535"]),
    ],
    ids=lambda value: "-".join(value)[:40],
)
def test_settings_that_cannot_work(
    earlybird: Any, image_folder: Path, tmp_path: Path, settings: list[str], said: list[str]
) -> None:
    refused(earlybird.train(tmp_path / "run", "data.heldout=0", *settings, data=image_folder), *said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-steps", -1], ["--max-steps is -1", "0 for all"]),
        (["--device", "tpu"], ["--device is 'tpu'", "auto, cpu or cuda"]),
        (["--seed", -1], ["seed is -1", "[0, 2^63)"]),
    ],
)
def test_arguments_that_cannot_work(earlybird: Any, tmp_path: Path, arguments: list[Any], said: list[str]) -> None:
    refused(earlybird.train(tmp_path / "run", more=arguments), *said)
    assert not (tmp_path / "run").exists()


def test_help_begins_with_the_way_from_images_to_a_report(earlybird: Any) -> None:
    shown = earlybird("--help").out
    names = re.findall(r"^  ([a-z-]+)  +\S", shown.partition("From images")[2], re.MULTILINE)
    assert names[:4] == ["prepare", "train", "evaluate", "report"]
    assert {"doctor", "submit", "data", "benchmark"} <= set(names)
    assert "..." not in shown.partition("From images")[2], "whole sentences"


def test_a_limit_of_time_is_told_of_units_of_time(earlybird: Any, tmp_path: Path) -> None:
    outcome = earlybird("submit", "demo", "--run", tmp_path / "run", "--time", "5", "--dry-run")
    refused(outcome, "--time is '5'", "must be a time", "a unit (s, min or h)")
    assert "epoch" not in outcome.err


@pytest.mark.parametrize("command", [["train"], ["show"], ["cost"]])
def test_an_unknown_recipe(earlybird: Any, command: list[str]) -> None:
    refused(earlybird(*command, "cifar100-msdnet-5exit"), "did you mean cifar100-msdnet-5exits?", "earlybird recipes")


def test_cuda_without_a_gpu(earlybird: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(earlybird.train(tmp_path / "run", more=["--device", "cuda"]), "no GPU", "--device cpu", "nvidia-smi")


def test_ranks_that_do_not_divide_the_update_batch(
    earlybird: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.distributed as dist

    for name, value in {"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "3", "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(dist, "init_process_group", lambda *_, **__: None)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: SimpleNamespace(add=lambda *_: 3))
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    refused(earlybird.train(tmp_path / "run"), "optim.update_batch is 8", "3 ranks", "--set optim.update_batch=6")


def test_data_that_cannot_be_used(earlybird: Any, tmp_path: Path, write_images: Callable[..., Path]) -> None:
    def refuses(data: Path, *said: str) -> None:
        refused(earlybird.train(tmp_path / "run", data=data), str(data), *said)
        assert not (tmp_path / "run").exists()

    refuses(tmp_path / "nowhere", "does not exist", "give a folder")
    (tmp_path / "empty").mkdir()
    refuses(tmp_path / "empty", "train/<class>/*")
    (tmp_path / "text").write_text("no archive")
    refuses(tmp_path / "text", "neither a tar", "nor a zip")
    images = write_images(tmp_path / "images", 2, 1)
    (images / "train" / "dog").mkdir()
    refuses(images, "'dog' has no image", "add images or remove the folder")
    (images / "train" / "dog").rmdir()
    for image in (images / "val").rglob("*.jpg"):
        image.write_bytes(b"not an image")
    refuses(images, "no usable validation image", "3 were left out", "not_an_image")
    shutil.rmtree(images / "val")
    refuses(images, "no validation split", "val/")


def test_an_address_that_is_not_this_machines(earlybird: Any, tmp_path: Path) -> None:
    settings = ("telemetry.port=9400", "telemetry.address=192.0.2.1")
    refused(earlybird.train(tmp_path / "run", *settings), "192.0.2.1:9400", "--set telemetry.port=")


def test_run_folders_that_cannot_be_written(earlybird: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused(earlybird.train(tmp_path / "file"), f"{tmp_path / 'file'} is a file", "give a folder")
    refused(earlybird.train(tmp_path / "file" / "run"), "cannot be written", "give another folder")
    assert (tmp_path / "file").read_text() == "mine"
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "locked")
        folder.mkdir()
        os.chmod(parent, 0o755)
        os.chmod(folder, 0o555)
        with _not_root():
            refused(earlybird.train(folder), str(folder), "cannot be written (Permission denied)")
            refused(earlybird.train(folder / "run"), "cannot be written (Permission denied)")


class _not_root:  # noqa: N801
    """Root may write anywhere: for once, be nobody."""

    def __enter__(self) -> None:
        self._user = os.geteuid()
        if self._user == 0:
            os.seteuid(65534)

    def __exit__(self, *_: object) -> None:
        os.seteuid(self._user)


def test_the_folder_of_another_run(earlybird: Any, trained: Path, image_folder: Path) -> None:
    before = tree(trained)
    outcome = earlybird.train(trained, "optim.momentum=0.8", "meta.interval=1", data=image_folder)
    refused(outcome, str(trained), "optim.momentum is 0.9 there and 0.8 here", "meta.interval is 4 there and 1 here")
    assert tree(trained) == before


def test_a_start_that_saved_nothing_can_be_mended(earlybird: Any, tmp_path: Path) -> None:
    """Two scales of a 32-pixel image are too large for a classifier, which the net notices at its first image."""
    wrong = ["data.image_size=32", "data.resize_size=32"]
    refused(earlybird.train(tmp_path / "run", *wrong), "16x16 px", "change the image size")
    assert earlybird.train(tmp_path / "run", more=["--max-steps", 1]).code == 0


def test_other_images_than_before(
    earlybird: Any, trained: Path, tmp_path: Path, write_images: Callable[..., Path]
) -> None:
    before = tree(trained)
    other = write_images(tmp_path / "other")
    refused(earlybird.train(trained, data=other), str(trained), "other images", "give the same data")
    assert tree(trained) == before  # config.json too: it says where the right images are


def test_a_checkpoint_of_another_net(earlybird: Any, trained: Path, image_folder: Path) -> None:
    config = json.loads((trained / "config.json").read_text())
    config["model"]["first_channels"] = 8
    (trained / "config.json").write_text(json.dumps(config))
    said = ("the checkpoint's model.stem", "(4, 3, 3, 3)", "(8, 3, 3, 3)", "another net")
    before = tree(trained)
    refused(earlybird.train(trained, "model.first_channels=8", data=image_folder), *said)
    refused(earlybird("evaluate", trained, "--device", "cpu"), *said)
    assert tree(trained) == before


def test_a_checkpoint_of_the_unweighted_twin(earlybird: Any, trained: Path, image_folder: Path) -> None:
    config = json.loads((trained / "config.json").read_text())
    config["sample_weights"]["enabled"] = False
    (trained / "config.json").write_text(json.dumps(config))
    outcome = earlybird.train(trained, "sample_weights.enabled=false", data=image_folder)
    refused(outcome, "sample_weights.enabled is false", "give --run another folder")


def test_a_damaged_newest_checkpoint_is_passed_over(earlybird: Any, trained: Path, image_folder: Path) -> None:
    reference = tree(trained / "checkpoints")
    payload = trained / "checkpoints" / "step-0000004" / "tensors.safetensors"
    payload.write_bytes(payload.read_bytes()[:-1] + b"?")
    outcome = earlybird.train(trained, data=image_folder, more=["--max-steps", 4])
    assert outcome.code == 0
    assert outcome.json["iterations"] == 4
    assert "checkpoint passed over" in outcome.err
    assert "step-0000004/tensors.safetensors does not match the sha-256" in outcome.err
    again = trained / "checkpoints" / "step-0000004-2" / "tensors.safetensors"
    assert again.read_bytes() == reference[str(payload)]
    for folder in (trained / "checkpoints").glob("step-*"):
        (folder / "manifest.json").unlink()
    refused(earlybird.train(trained, data=image_folder), "no whole checkpoint left", "to start over")


def test_a_damaged_config(earlybird: Any, trained: Path, image_folder: Path) -> None:
    for text in ("{", "[]", '{"recipe": "demo"}', '{"recipe": "demo", "bogus": 1}'):
        (trained / "config.json").write_text(text)
        refused(earlybird("evaluate", trained), str(trained / "config.json"), "not a readable run configuration")
        refused(earlybird.train(trained, data=image_folder), str(trained / "config.json"))


def test_evaluate_needs_a_run(earlybird: Any, trained: Path, tmp_path: Path) -> None:
    refused(earlybird("evaluate", tmp_path / "nothing"), "no run folder", "config.json")
    refused(earlybird("evaluate", trained, "--split", "test"), "--split is 'test'", "val or heldout")
    shutil.rmtree(trained / "checkpoints")
    refused(earlybird("evaluate", trained), "no checkpoint yet", "train it first")
    refused(earlybird("report", tmp_path / "nothing"), "no run folder")


def test_a_run_that_diverges(earlybird: Any, tmp_path: Path, image_folder: Path) -> None:
    """Exit code 3; what is not finite is never saved over what is."""
    run = tmp_path / "run"
    settings = ["checkpoint.every=1steps", "checkpoint.keep=1"]
    assert earlybird.train(run, *settings, data=image_folder, more=["--max-steps", 1]).code == 0
    good = tree(run / "checkpoints")

    from trainer.learning.state import TrainState

    def explode(state: TrainState) -> None:
        with torch.no_grad():
            next(iter(state.network.parameters.values())).fill_(float("nan"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainState, "step_backbone", explode)
        outcome = earlybird.train(run, *settings, data=image_folder)
        refused(outcome, "training diverged", "the checkpoint of iteration 1 is good", "lower optim.base_lr", code=3)
        assert tree(run / "checkpoints") == good
        outcome = earlybird.train(tmp_path / "unsaved", "run.log_every=2", data=image_folder)
        assert outcome.code == 3
        assert "a training loss is not finite" in outcome.err
        assert "after iteration 2; nothing was saved yet" in outcome.err


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied", "log.jsonl"), torch.OutOfMemoryError()])
def test_trouble_of_the_machine(
    earlybird: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("trainer.run.training.run_training", fail)
    said = "log.jsonl" if isinstance(error, OSError) else "optim.accumulation"
    refused(earlybird.train(tmp_path / "run"), said, "EARLYBIRD_TRACEBACK=1")
    monkeypatch.setenv("EARLYBIRD_TRACEBACK", "1")
    with pytest.raises(type(error)):
        earlybird.train(tmp_path / "run")


def test_our_own_errors_show_a_traceback(earlybird: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr("trainer.run.training.run_training", fail)
    with pytest.raises(KeyError):
        earlybird.train(tmp_path / "run")


def test_recipes_as_json(earlybird: Any) -> None:
    rows = earlybird("recipes", "--json").json
    names = [row["recipe"] for row in rows]
    assert {"demo", "demo-baseline", "imagenet-msdnet-step4", "cifar100-msdnet-5exits"} <= set(names)
    assert len(names) == len(set(names))
    assert all(set(row) == {"recipe", "description"} and row["description"] for row in rows)


def test_show_as_json(earlybird: Any) -> None:
    shown = earlybird("show", "cifar100-msdnet-5exits", "--set", "meta.interval=7", "--json").json
    assert shown["recipe"] == "cifar100-msdnet-5exits"
    assert shown["meta"]["interval"] == 7
    assert (shown["sample_weights"]["epsilon"], shown["sample_weights"]["centre"]) == (0.8, "col")
    assert earlybird("show", "cifar100-msdnet-5exits-baseline", "--json").json["sample_weights"]["enabled"] is False
    lines = earlybird("show", "demo", "--set", "meta.interval=7").out.splitlines()
    assert ["meta.interval", "7"] in [line.split() for line in lines]


def test_cost_as_json(earlybird: Any) -> None:
    table = earlybird("cost", "cifar100-msdnet-5exits", "--json").json
    assert [row["exit"] for row in table["exits"]] == [1, 2, 3, 4, 5]
    assert [row["mul_adds"] for row in table["exits"]] == [6_859_876, 14_350_024, 27_536_684, 41_714_576, 58_480_628]
    assert [row["params"] for row in table["exits"]][-1] == 2_078_924


def test_evaluate_as_json(earlybird: Any, trained: Path) -> None:
    scores = earlybird("evaluate", trained, "--device", "cpu", "--json").json
    assert scores["split"] == "val"
    assert [row["num_images"] for row in scores["anytime"]] == [21, 21]
    assert [row["ratio"] for row in scores["budgeted"]] == pytest.approx([0.05 * k for k in range(1, 40)])
    assert scores["anytime"][0]["top1"] == json.loads((trained / "summary.json").read_text())["exits"][0]["top1"]
    assert (trained / "report.html").is_file()


def test_evaluate_a_long_tail(earlybird: Any, tmp_path: Path) -> None:
    """600 images of 3 classes at mu = 0.25: 200, 50 and 12 train, one class in each group."""
    synthetic = ("data.synthetic_images=600", "data.synthetic_classes=3", "data.heldout=0", "data.long_tail_mu=0.25")
    assert earlybird.train(tmp_path, *synthetic, more=("--max-steps", 2)).code == 0
    found = earlybird("evaluate", tmp_path, "--json").json
    assert [row["num_train"] for row in found["per_class"]] == [200, 50, 12]
    assert [(row["group"], row["num_classes"]) for row in found["shots"]] == [("many", 1), ("medium", 1), ("few", 1)]
    for k, exit_row in enumerate(found["anytime"]):
        hits = sum(row["top1"][k] * row["num_images"] for row in found["per_class"])
        assert hits / exit_row["num_images"] == pytest.approx(exit_row["top1"])
    assert "by class size" in earlybird("evaluate", tmp_path).out
