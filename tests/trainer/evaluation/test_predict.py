"""What is said of single files is what evaluation counts, and a bad file costs itself alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.evaluation import predict as prediction
from trainer.evaluation.early_exit import Answers, answer
from trainer.evaluation.predict import mul_adds
from trainer.run.folder import RunFolder


@pytest.fixture
def run(earlybird: Any, tmp_path: Path, write_images: Callable[..., Path]) -> tuple[Path, list[Path]]:
    """A trained run, and its validation images."""
    images = write_images(tmp_path / "images", 12, 6)
    folder = tmp_path / "run"
    assert earlybird.train(folder, "data.heldout=0.2", data=images).code == 0
    return folder, sorted((images / "val").rglob("*.*"))


def test_files_are_answered_as_evaluation_counts_them(earlybird: Any, run: tuple[Path, list[Path]]) -> None:
    folder, files = run
    evaluated = earlybird("evaluate", folder, "--json").json
    whole = earlybird("predict", folder, *files, "--batch", 4, "--json")
    assert whole.code == 0, whole.err
    rows = whole.json["predictions"]
    right = [row["class_name"] == Path(row["image"]).parent.name for row in rows]
    assert 100 * sum(right) / len(right) == pytest.approx(evaluated["anytime"][-1]["top1"])
    assert {row["exit"] for row in rows} == {2}
    first = earlybird("predict", folder, *files, "--threshold", 0, "--json").json["predictions"]
    right = [row["class_name"] == Path(row["image"]).parent.name for row in first]
    assert 100 * sum(right) / len(right) == pytest.approx(evaluated["anytime"][0]["top1"])
    assert {row["exit"] for row in first} == {1}
    assert earlybird("predict", folder, *files, "--budget", "1G").code == 0


def test_the_untimed_run_warms_every_block(
    earlybird: Any, run: tuple[Path, list[Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, files = run
    exits: list[set[int]] = []

    def observed(*arguments: Any) -> Answers:
        said = answer(*arguments)
        exits.append(set(said.exits.tolist()))
        return said

    monkeypatch.setattr(prediction, "answer", observed)
    assert earlybird("predict", folder, files[0], "--threshold", 0).code == 0
    assert exits == [{1}, {0}], "the black image goes to the last exit, the file leaves at the first"


def test_a_bad_file_costs_itself_alone(earlybird: Any, run: tuple[Path, list[Path]], tmp_path: Path) -> None:
    folder, files = run
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(files[0].read_bytes()[:40])
    said = earlybird("predict", folder, broken, tmp_path / "none.jpg", files[0], "--json")
    assert said.code == 1
    assert [bool(row["error"]) for row in said.json["predictions"]] == [True, True, False]
    assert said.err.count("earlybird: ") == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--threshold", "1.5"], "--threshold is 1.5"),
        (["--budget", "9X"], "--budget is '9X'"),
        (["--budget", "9M"], "run earlybird evaluate"),
        (["--budget", "9M", "--threshold", "0.5"], "give one of them"),
        (["--dtype", "int8"], "--dtype is 'int8'"),
        (["--batch", "0"], "--batch is 0"),
    ],
)
def test_refused(earlybird: Any, run: tuple[Path, list[Path]], words: list[str], message: str) -> None:
    folder, files = run
    refused = earlybird("predict", folder, files[0], *words)
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1), refused.err
    assert message in refused.err


def test_budgets() -> None:
    assert [mul_adds(text) for text in ("9M", "1.2g", "350")] == [9e6, 1.2e9, 350]


def test_a_budget_is_of_the_net_that_answers(earlybird: Any, run: tuple[Path, list[Path]]) -> None:
    folder, files = run
    evaluation = earlybird("evaluate", folder, "--json").json
    kept = RunFolder(folder).read_evaluation()
    assert kept is not None
    RunFolder(folder).write_evaluation(kept | {"iteration": kept["iteration"] - 1})
    refused = earlybird("predict", folder, files[0], "--budget", "1G")
    assert (refused.code, refused.err.count("\n")) == (2, 1), refused.err
    assert f"thresholds of iteration {kept['iteration'] - 1}" in refused.err
    assert f"checkpoint is of iteration {kept['iteration']}" in refused.err
    RunFolder(folder).write_thresholds({"iteration": kept["iteration"], "budgets": evaluation["budgeted"]})
    assert earlybird("predict", folder, files[0], "--budget", "1G").code == 0
