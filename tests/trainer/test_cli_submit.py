"""`earlybird submit`: what is checked before anything is sent, and what programs are told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.cli_place import seeds_of

ORIGIN = "demo-imta-finetune"


def words(earlybird: Any, run: Path) -> list[str]:
    """The options of a tiny run, as submit takes them."""
    return [word for word in earlybird.arguments(run)[2:] if word != "--json"]


def test_a_dry_run_says_as_json_what_would_be_sent(earlybird: Any, tmp_path: Path) -> None:
    run = tmp_path / "run"
    sent = earlybird("submit", "demo", "--seeds", "2", *words(earlybird, run), "--dry-run", "--json").json
    plain = earlybird("submit", "demo", "--seeds", "2", *words(earlybird, run), "--dry-run").out
    assert (sent["text"], sent["run_folders"]) == (plain, [f"{run}/seed-0", f"{run}/seed-1"])
    assert sent["data"] == "synthetic, 72 images of 4 classes"
    assert not run.exists()


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("", (None,)), ("3", (0, 1, 2)), ("3-3", (3,)), ("3,", (3,)), ("7,1-2", (7, 1, 2)), ("0-4", (0, 1, 2, 3, 4))],
)
def test_seeds_mean_the_same_everywhere(text: str, seeds: tuple[int | None, ...]) -> None:
    assert seeds_of(text) == seeds


def test_a_finetune_without_an_origin_is_refused_before_it_is_sent(earlybird: Any, tmp_path: Path) -> None:
    refused = earlybird("submit", ORIGIN, *words(earlybird, tmp_path / "run"), "--dry-run")
    assert (refused.code, refused.out) == (2, "")
    assert "give --from RUN" in refused.err


def test_a_finetune_is_submitted_and_submitted_again(earlybird: Any, tmp_path: Path) -> None:
    first, second, command = tmp_path / "first", tmp_path / "second", ("submit", ORIGIN)
    for seed in (0, 1):
        run = first / f"seed-{seed}"
        name, _, *rest = earlybird.arguments(run)
        assert earlybird(name, "demo-imta-pretrain", *rest, "--seed", seed, "--max-steps", 1).code == 0
    own = ("--from", first / "seed-0")
    given = (*words(earlybird, second), "--dry-run", "--json")
    assert f"--from {first}/seed-0\n" in earlybird(*command, *own, *given).json["text"].replace("\n  ", "\n")

    name, _, *rest = earlybird.arguments(second)
    assert earlybird(name, ORIGIN, *rest, *own, "--max-steps", 1).code == 0
    for again in (own, ()):  # it goes on, whether told again where it began or not
        assert earlybird(*command, *again, *given).code == 0
    other = earlybird(*command, "--from", first / "seed-1", *given)
    assert (other.code, "origin.weights" in other.err) == (2, True)


def test_an_array_of_finetunes_begins_each_with_its_own_seed(earlybird: Any, tmp_path: Path) -> None:
    first = tmp_path / "first"
    for seed in (0, 1):
        name, _, *rest = earlybird.arguments(first / f"seed-{seed}")
        assert earlybird(name, "demo-imta-pretrain", *rest, "--seed", seed, "--max-steps", 1).code == 0
    given = ("submit", ORIGIN, "--seeds", "2", *words(earlybird, tmp_path / "second"), "--dry-run")
    each = earlybird(*given, "--from", first / "seed-{seed}")
    assert each.code == 0, each.err
    assert [f"{first}/seed-{seed}\n" in each.out for seed in (0, 1)] == [True, True]
    one = earlybird(*given, "--from", first / "seed-0")
    assert (one.code, "was trained on other images" in one.err) == (2, True)
    pods = tmp_path / "site.toml"
    pods.write_text(
        '[kubernetes]\nimage = "a"\nruns = "/runs"\napi = "jobset"\n'
        f'[kubernetes.volumes]\n"/runs" = "hostPath:{tmp_path}"\n'
    )
    sent = earlybird(*given, "--from", first / "seed-{seed}", "--target", "kubernetes", "--site", pods)
    assert sent.code == 0, sent.err
    sets = [part["spec"]["replicatedJobs"][0]["template"]["spec"] for part in yaml.safe_load_all(sent.out)]
    arguments = [part["template"]["spec"]["containers"][0]["args"] for part in sets]
    assert [args[args.index("--from") + 1] for args in arguments] == ["/runs/first/seed-0", "/runs/first/seed-1"]


def test_double_backward_in_parts_is_refused_where_the_ranks_are_known(earlybird: Any, tmp_path: Path) -> None:
    """2 ranks of 4 images in micro-batches of 4 are whole, one of 8 is not."""
    run = tmp_path / "run"
    settings = ("--set", "meta.form=double_backward", "--set", "optim.micro_batch=4")
    given = ("submit", "demo", *words(earlybird, run), *settings, "--dry-run")
    refused = earlybird(*given)
    assert (refused.code, "optim.micro_batch 4, which cuts a rank's 8 images into 2 parts" in refused.err) == (2, True)
    assert earlybird(*given, "--processes", 2).code == 0
    trained = earlybird.train(run, "meta.form=double_backward", "optim.micro_batch=4")
    assert (trained.code, "optim.micro_batch 4" in trained.err, run.exists()) == (2, True, False)
