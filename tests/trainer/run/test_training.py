"""The main job, run whole on tiny sets: what it leaves behind, what it answers while it runs, one rank and two."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from dataloading.config import DataConfig
from dataloading.datasets.open import open_dataset
from dataloading.stream import Stream
from trainer.config import read_config
from trainer.evaluation.anytime import anytime, anytime_rows
from trainer.run.checkpoint import load_latest
from trainer.run.iterations import Iterations
from trainer.run.trials import is_complete
from trainer.settings import setting_names
from trainer.telemetry.jsonl import read_rows
from trainer.telemetry.telemetry import Telemetry

ROOT = Path(__file__).resolve().parents[3]


def tensors_of(run: Path) -> dict[str, torch.Tensor]:
    checkpoint = load_latest(run)
    assert checkpoint is not None
    return checkpoint.tensors


def events(run: Path, name: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(run / "log.jsonl") if row["event"] == name]


def test_a_whole_run(earlybird: Any, image_folder: Path, tmp_path: Path) -> None:
    """65 training images in batches of 16, 2 epochs: 9 iterations, the epochs end in the 5th and the 9th."""
    run = tmp_path / "run"
    outcome = earlybird.train(
        run, "run.log_every=4", "run.evaluate_every=1", "checkpoint.every=1epoch", data=image_folder
    )
    assert outcome.code == 0, outcome.err
    summary = json.loads((run / "summary.json").read_text())
    assert outcome.json == summary
    assert (summary["status"], summary["recipe"], summary["iterations"]) == ("completed", "demo", 9)
    assert [set(row) for row in summary["exits"]] == [{"exit", "top1", "top5", "loss"}] * 2
    assert summary["images_per_second"] > 0
    assert summary["seconds"] > 0
    assert summary["num_validation_images"] == 21

    logged = [row["event"] for row in read_rows(run / "log.jsonl")]
    assert [event for event in logged if event != "checkpoint"] == [
        *("start", "train", "train", "eval", "train", "train", "eval", "end")
    ]
    assert [row["iteration"] for row in events(run, "checkpoint")] == [5, 9]  # each when it reached the disk
    rows = events(run, "train")
    assert [(row["iteration"], row["num_iterations"], row["images"]) for row in rows] == [
        (4, 4, 64),
        (5, 1, 16),
        (8, 3, 48),
        (9, 1, 16),
    ]
    assert [row["num_meta_steps"] for row in rows] == [2, 2, 0, 2]  # demo: iterations 0, 4 and 8, twice each
    assert rows[2]["meta_loss"] is None
    assert [row["iteration"] for row in events(run, "eval")] == [5, 9]
    assert all(exit_["num_images"] == 21 for row in events(run, "eval") for exit_ in row["exits"])
    assert rows[-1]["learning_rate"] == 0.0
    assert events(run, "end")[0]["status"] == "completed"


def test_config_json_repeats_the_run(earlybird: Any, image_folder: Path, tmp_path: Path) -> None:
    """Every value of config.json, given to another recipe's command, gives the same weights bit for bit."""
    first, second = tmp_path / "first", tmp_path / "second"
    settings = ["meta.interval=2", "optim.nesterov=true", "sample_weights.centre=mat"]
    assert earlybird.train(first, *settings, data=image_folder, more=["--seed", 5, "--max-steps", 5]).code == 0
    values = setting_names(read_config(first / "config.json"))
    assert values["seed"] == 5
    words = []
    for name, value in values.items():
        text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
        words += ["--set", f"{name}={text}"]
    command = ["train", "cifar10-msdnet-5exits", "--run", second, "--device", "cpu", "--max-steps", 5]
    assert earlybird(*command, *words).code == 0
    assert (first / "config.json").read_text() == (second / "config.json").read_text()
    ours, theirs = tensors_of(first), tensors_of(second)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    other = tmp_path / "other"
    assert earlybird.train(other, *settings, data=image_folder, more=["--seed", 6, "--max-steps", 5]).code == 0
    assert not torch.equal(
        tensors_of(other)["model.stem.scales.0.conv.weight"], ours["model.stem.scales.0.conv.weight"]
    )


def _without(labels: dict[str, str], names: dict[str, str]) -> list[str]:
    return [value for name, value in labels.items() if name not in names]


def test_a_scrape_while_it_trains(
    earlybird: Any, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_port: int
) -> None:
    """Over real HTTP, between two iterations: throughput and every exit's accuracy."""
    seen: list[dict[tuple[str, ...], float]] = []
    write = Telemetry.train

    def scraped(telemetry: Telemetry, *arguments: Any) -> None:
        write(telemetry, *arguments)
        with urllib.request.urlopen(f"http://127.0.0.1:{free_port}/metrics", timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
            own = {"run": "run", "rank": "0"}
            assert all(s.labels.items() >= own.items() for f in families for s in f.samples)
            seen.append({(s.name, *_without(s.labels, own)): s.value for f in families for s in f.samples})

    monkeypatch.setattr(Telemetry, "train", scraped)
    settings = [f"telemetry.port={free_port}", "run.evaluate_every=1"]
    assert earlybird.train(tmp_path / "run", *settings, data=image_folder).code == 0
    rows = events(tmp_path / "run", "train")
    assert len(seen) == len(rows) == 2
    for scrape, row in zip(seen, rows, strict=True):
        assert scrape["earlybird_iteration",] == row["iteration"]
        assert scrape["earlybird_images_per_second",] == pytest.approx(row["images_per_second"])
        for k in (1, 2):
            assert scrape["earlybird_exit_accuracy_ratio", str(k), "train"] == pytest.approx(row["top1"][k - 1])
    evaluated = events(tmp_path / "run", "eval")[0]["exits"]
    for k in (1, 2):
        share = seen[1]["earlybird_exit_accuracy_ratio", str(k), "val"]
        assert share == pytest.approx(evaluated[k - 1]["top1"] / 100)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{free_port}/metrics", timeout=10)


def test_every_iteration_is_a_sign_of_life(earlybird: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The alert on earlybird_last_step_timestamp_seconds knows no log step: the time moves between two of them."""
    seen: list[float] = []
    between = Iterations.between

    def noted(iterations: Iterations, *arguments: Any) -> bool:
        seen.append(iterations.telemetry.metrics.read()["last_step_timestamp_seconds"][()])  # type: ignore[index]
        return between(iterations, *arguments)

    monkeypatch.setattr(Iterations, "between", noted)
    assert earlybird.train(tmp_path / "run", "run.log_every=1000").code == 0
    assert len(seen) == len(set(seen)) == 9
    assert seen == sorted(seen)


@pytest.mark.parametrize("evaluation_batch", [4, 8, 64])
def test_each_validation_image_once(
    earlybird: Any, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, evaluation_batch: int
) -> None:
    seen: list[int] = []
    score = anytime

    def watched(module: Any, loader: Any, precision: Any) -> Any:
        def batches() -> Any:
            for batch in loader:
                mask = np.ones(len(batch), bool) if batch.mask is None else batch.mask.numpy()
                seen.extend(batch.ids[mask].tolist())
                yield batch

        return score(module, batches(), precision)

    monkeypatch.setattr("trainer.run.validation.anytime", watched)
    settings = [f"run.evaluation_batch={evaluation_batch}"]
    assert earlybird.train(tmp_path / "run", *settings, data=image_folder, more=["--max-steps", 1]).code == 0
    assert sorted(seen) == list(range(21))


def test_broken_images_do_not_end_a_run(earlybird: Any, tmp_path: Path, write_images: Callable[..., Path]) -> None:
    """One is no image when the set is indexed: it is left out. Others break afterwards: they are replaced and named."""
    images = write_images(tmp_path / "images")
    (images / "train" / "ant" / "003.jpg").write_bytes(b"not an image")
    assert earlybird.train(tmp_path / "first", "data.heldout=0", data=images).code == 0
    left_out = events(tmp_path / "first", "unreadable images left out")
    assert [row["number"] for row in left_out] == [1]
    assert "train/ant/003.jpg (not_an_image)" in left_out[0]["first"]
    assert not events(tmp_path / "first", "bad_image")

    broken = images / "train" / "bee" / "005.jpg"
    broken.write_bytes(bytes(broken.stat().st_size))
    unread = images / "val" / "cat" / "002.jpg"
    unread.write_bytes(unread.read_bytes()[:-200] + bytes(200))
    outcome = earlybird.train(tmp_path / "second", "data.heldout=0", data=images)
    assert outcome.code == 0
    assert outcome.json["iterations"] == 9
    named = events(tmp_path / "second", "bad_image")
    assert {row["name"] for row in named} == {str(broken)}
    assert len(named) == 2  # once an epoch
    assert outcome.json["num_validation_images"] == 20


def test_a_stopped_run_is_not_trained_further_than_asked(earlybird: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for asked, status in ((3, "stopped"), (3, "stopped"), (2, "stopped"), (0, "completed"), (0, "completed")):
        summary = earlybird.train(run, more=["--max-steps", asked]).json
        assert summary["status"] == status
        assert summary["iterations"] == (9 if status == "completed" else 3)
        assert len(summary["exits"]) == 2
        trained = [(row["images"], row["seconds"]) for row in events(run, "train")]
        num_images, seconds = map(sum, zip(*trained, strict=True))
        assert summary["images_per_second"] == pytest.approx(num_images / seconds)  # of all starts together


def test_the_summary_is_of_the_last_start(earlybird: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a later start trains there is none; one that diverges or fails says so in the place of the one before."""
    run, seen = tmp_path / "run", []
    between = Iterations.between

    def looked(iterations: Iterations, *arguments: Any) -> bool:
        seen.append((run / "summary.json").exists())
        if iterations.state.progress.iteration == 8:
            raise ValueError("the reader broke")
        return between(iterations, *arguments)

    def summary() -> list[Any]:
        kept = json.loads((run / "summary.json").read_text())
        return [kept["status"], kept["iterations"], kept.get("reason", "").split(":")[0], is_complete(run, 3)]

    assert earlybird.train(run, more=["--max-steps", 3]).code == 0
    assert summary() == ["stopped", 3, "", True]
    assert earlybird.train(run, "optim.base_lr=1e18", "run.log_every=2", more=["--allow", "optim.base_lr"]).code == 3
    assert summary() == ["diverged", 4, "training diverged", False]
    monkeypatch.setattr(Iterations, "between", looked)
    assert earlybird.train(run, more=["--allow", "optim.base_lr"]).code == 2
    assert seen == [False] * 5
    assert summary() == ["failed", 8, "the reader broke", False]


def test_a_loss_that_is_no_number_is_null(
    earlybird: Any, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In what is printed, in the summary, the evaluation and the log; the report has a dash for it."""
    run = tmp_path / "run"
    monkeypatch.setattr("trainer.run.validation.anytime", _without_a_loss(anytime))
    monkeypatch.setattr("trainer.evaluation.command.anytime_rows", _without_a_loss(anytime_rows))
    trained = earlybird.train(run, data=image_folder, more=["--max-steps", 1])
    evaluated = earlybird("evaluate", run, "--device", "cpu", "--json")
    assert evaluated.code == 0, evaluated.err
    files = [(run / name).read_text() for name in ("summary.json", "evaluation.json")]
    told = [json.loads(text, parse_constant=pytest.fail) for text in (trained.out, evaluated.out, *files)]
    scores = [answer.get("exits") or answer["anytime"] for answer in told]
    assert [row["loss"] for rows in scores for row in rows] == [None] * 8
    assert earlybird("report", run).code == 0
    assert "<td>-</td>" in (run / "report.html").read_text()


def _without_a_loss(score: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *arguments: [{**row, "loss": float("nan")} for row in score(*arguments)]


def test_two_ranks_train_as_one(earlybird: Any, tmp_path: Path) -> None:
    """The demo's photographs through the loader, weighted, 20 iterations: the same weights to 1e-9, the same scores."""
    settings = ("data.source=demo", "model.batch_norm=running", "meta.interval=2", "optim.update_batch=32")
    settings += ("precision.dtype=float64",)  # twenty steps amplify a rounding a thousandfold
    alone, together = tmp_path / "alone", tmp_path / "together"
    assert earlybird.train(alone, *settings, more=["--max-steps", 20]).code == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    done = subprocess.run(
        [*torchrun, "--", "trainer", *earlybird.arguments(together, *settings), "--max-steps", "20"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        timeout=300,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    one, two = tensors_of(alone), tensors_of(together)
    assert one.keys() == two.keys()
    for name in one:
        if not name.startswith("generator"):
            ours, theirs = one[name].double(), two[name].double()
            assert (ours - theirs).norm() <= 1e-9 * ours.norm(), name
    scores = [json.loads((run / "summary.json").read_text()) for run in (alone, together)]
    assert scores[0]["num_validation_images"] == scores[1]["num_validation_images"] == 840
    assert scores[0]["data_fingerprint"] == scores[1]["data_fingerprint"]
    for first, second in zip(*(score["exits"] for score in scores), strict=True):
        assert first == pytest.approx(second, rel=1e-4)
    images = [[row["images"] for row in events(run, "train")] for run in (alone, together)]
    assert images[0] == images[1]


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_images_of_one(earlybird: Any, world_size: int) -> None:
    """In both halves of an iteration the ranks' slices, side by side, are one rank's images, order and crops."""
    config = DataConfig(source="demo", image_size=32, resize_size=36, heldout=0.1)
    train = open_dataset(config, seed=3).train
    whole = Stream(train, config, 3, 64)
    ranks = [Stream(train, config, 3, 64, rank, world_size) for rank in range(world_size)]
    share = 64 // world_size
    for iteration in (0, 1, len(train) // 128, 1000):
        expected, parts = whole.plan(iteration), [rank.plan(iteration) for rank in ranks]
        for half in (0, 1):
            cut, of_one = slice(half * share, (half + 1) * share), slice(half * 64, half * 64 + 64)
            assert np.array_equal(np.concatenate([part.ids[cut] for part in parts]), expected.ids[of_one])
            crops = np.concatenate([part.geometry.crop[cut] for part in parts])
            assert np.array_equal(crops, expected.geometry.crop[of_one])
