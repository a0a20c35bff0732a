"""What is not finite moves nothing; what looks wrong is told once."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataloading.batch import Batch
from trainer.config import Config
from trainer.evaluation.anytime import AnytimeRow
from trainer.learning.guard import Guard
from trainer.learning.meta_gradient import MetaConfig
from trainer.learning.optim import OptimConfig
from trainer.learning.precision import PrecisionConfig
from trainer.learning.state import Progress, TrainState
from trainer.models.config import ModelConfig
from trainer.models.weight_net import WeightNetConfig
from trainer.run import snapshot
from trainer.run.build import build_state
from trainer.run.checkpoint import load_latest
from trainer.run.checkpoint import snapshot as copied
from trainer.run.distributed import Ranks
from trainer.run.health import STRAGGLER_TIMES, USUAL, HealthConfig, Signs, straggler_scores
from trainer.run.ledger import read_ledger, unequal
from trainer.run.loop import Hooks, run_loop
from trainer.telemetry.jsonl import read_rows
from trainer.telemetry.window import Own, Reading

MODEL = ModelConfig(
    num_exits=2, first_channels=4, growth=4, growth_factors=(1, 1), bottleneck_factors=(1, 1), classifier_channels=8
)


def state_of(fused: bool = False, **changes: Any) -> TrainState:
    config = Config(
        recipe="test",
        model=MODEL,
        optim=OptimConfig(8, base_batch=64, accumulation=changes.pop("accumulation", 1)),
        weight_net=WeightNetConfig(width=8),
        meta=MetaConfig(**changes),
        precision=PrecisionConfig(),
    )
    state = build_state(config, 5, Progress(0, 100), Ranks(0, 1, 0, 1, torch.device("cpu")))
    if fused:  # as on a GPU
        settings = {name: state.optimizer.defaults[name] for name in ("lr", "momentum", "weight_decay", "nesterov")}
        state.optimizer = torch.optim.SGD(state.network.module.parameters(), fused=True, **settings)
    return state


class Fixed:
    """A loader of given batches."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def batches(self, start: int, end: int) -> list[Batch]:
        return self._batches[start:end]

    def ended_epoch(self, _: int) -> None:
        return None


class Silent:
    def poll(self) -> tuple[bool, bool]:
        return False, False


def batches(number: int, spoil: Callable[[int, torch.Tensor], None]) -> Fixed:
    """16 random images each; `spoil` changes those of an iteration in place."""
    made = []
    for iteration in range(number):
        generator = torch.Generator().manual_seed(iteration)
        images = torch.randn(16, 3, 16, 16, generator=generator)
        spoil(iteration, images)
        made.append(Batch(images, torch.randint(5, (16,), generator=generator), np.arange(16)))
    return Fixed(made)


def run(state: TrainState, loader: Fixed, last: int) -> TrainState:
    hooks = Hooks(lambda *_: None, lambda _: None, lambda *_: False)
    run_loop(state, loader, hooks, Silent(), last)  # type: ignore[arg-type]
    return state


def tensors(state: TrainState) -> dict[str, torch.Tensor]:
    """What must not move: all but the counters of forward passes and of Adam's steps."""
    taken = copied(snapshot.take(state)[0])
    return {
        name: value
        for name, value in taken.items()
        if not any(word in name for word in ("num_batches", "optimizer.step.", "generator"))
    }


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    "changes",
    [{}, {"schedule": "online"}, {"accumulation": 2}],
    ids=["paper", "online", "accumulated"],
)
@pytest.mark.parametrize("spoilt", [slice(0, 16), slice(3, 4), slice(12, 13)], ids=["all", "first-half", "second-half"])
def test_nothing_moves_by_what_is_not_finite(changes: dict[str, Any], fused: bool, spoilt: slice) -> None:
    """Backbone, momentum, running statistics, weight net and Adam's moments, bit for bit where both halves are bad;
    finite all of them where one is, and moved by the other."""

    def spoil(iteration: int, images: torch.Tensor) -> None:
        if iteration == 2:
            images[spoilt] = float("nan")

    state = run(state_of(fused, **changes), batches(3, spoil), 2)
    before = tensors(state)
    assert state.guard.read() == (0, 0)
    run(state, batches(3, spoil), 3)
    after = tensors(state)
    both = spoilt == slice(0, 16)
    assert state.guard.read() == ((2, 2) if both else (1, 1))
    assert all(value.isfinite().all() for value in after.values())
    for name, value in before.items():
        if both:
            assert torch.equal(after[name], value), name
    moved = any(not torch.equal(after[name], before[name]) for name in before if name.startswith("model."))
    assert moved is not both


@pytest.mark.parametrize("fused", [False, True])
def test_the_very_first_update(fused: bool) -> None:
    """There is no momentum yet: it must begin at zero, not at what the memory held."""

    def spoil(iteration: int, images: torch.Tensor) -> None:
        if iteration == 0:
            images.fill_(float("inf"))

    state = state_of(fused)
    before = {name: value.clone() for name, value in state.network.module.state_dict().items() if "num_b" not in name}
    run(state, batches(1, spoil), 1)
    after = state.network.module.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(not slot["momentum_buffer"].any() for slot in state.optimizer.state.values())


def test_a_loss_that_is_not_finite_is_enough() -> None:
    """Its gradient can be finite: a label's probability of zero has an infinite loss and a gradient of one."""
    state = run(state_of(), batches(2, lambda *_: None), 2)
    before = tensors(state)
    head = dict(state.network.module.named_modules())
    last = [name for name, module in head.items() if isinstance(module, torch.nn.Linear)][-1]

    def certain(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.arange(5) == 0, logits, logits.detach() * 0 - float("inf"))

    hook = head[last].register_forward_hook(certain)
    run(state, batches(3, lambda *_: None), 3)
    hook.remove()
    assert state.guard.read()[0] == 2
    after = tensors(state)
    assert all(torch.equal(after[name], value) for name, value in before.items() if name.startswith("model."))


def test_the_culprits_are_named() -> None:
    """One label's probability of zero at the second exit: that image, that exit, that iteration."""
    guard = Guard([], torch.device("cpu"))
    losses = torch.zeros(4, 3)
    guard.saw(6, np.array([40, 41, 42, 43]), losses)
    assert guard.culprit(0) is None
    losses = losses.clone()
    losses[2, 1] = float("inf")
    guard.saw(7, np.array([50, 51, 52, 53]), losses)
    guard.saw(8, np.array([60, 61, 62, 63]), torch.full((4, 3), float("nan")))
    assert str(guard.culprit(3)) == "rank 3, iteration 7, exits 2, images 52"
    guard.forget_losses()
    assert guard.culprit(3) is None
    guard.saw(9, np.arange(100), torch.full((100, 3), float("nan")))
    assert str(guard.culprit(0)) == "rank 0, iteration 9, exits 1, 2, 3, images 0, 1, 2, 3, 4, 5, 6, 7 and 92 more"


def test_counts_in_a_row_over_readings() -> None:
    guard = Guard([], torch.device("cpu"))
    good, bad = [torch.ones(2)], [torch.ones(2), torch.tensor([1.0, float("inf")])]
    for gradients in (bad, good, bad, bad):
        guard.finite(gradients)
    assert guard.read() == (3, 2)
    guard.finite(bad)
    assert guard.read() == (1, 3)
    guard.finite(good)
    assert guard.read() == (0, 3)
    assert guard.read() == (0, 0)


# --- what the run does about it ---


def events(run: Path, name: str) -> list[dict[str, Any]]:
    return [row for row in read_rows(run / "log.jsonl") if row["event"] == name]


@pytest.fixture
def spoil(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """(calls to spoil, ...) -> the calls made: which training batches of this process turn to NaN, counted from 0."""
    normalized = Batch.normalized

    def chosen(*calls: int) -> list[int]:
        made: list[int] = []

        def changed(batch: Batch, *arguments: Any) -> Batch:
            batch = normalized(batch, *arguments)
            if torch.is_grad_enabled():
                if len(made) in calls:
                    batch = dataclasses.replace(batch, images=batch.images * float("nan"))
                made.append(len(made))
            return batch

        monkeypatch.setattr(Batch, "normalized", changed)
        return made

    return chosen


def alike(run: Path, other: Path) -> bool:
    ours, theirs = load_latest(run), load_latest(other)
    assert ours is not None
    assert theirs is not None
    return all(torch.equal(ours.tensors[name], theirs.tensors[name]) for name in theirs.tensors)


def test_stop(earlybird: Any, tmp_path: Path, spoil: Callable[..., list[int]]) -> None:
    """At the log step, with what was saved before; the next start goes on from there."""
    run = tmp_path / "run"
    made = spoil(5)
    settings = ["checkpoint.every=3steps", "run.log_every=4"]
    outcome = earlybird.train(run, *settings)
    assert outcome.code == 3
    assert "2 updates were left out, 2 in a row; first on rank 0, iteration 5, exits 1, 2" in outcome.err
    assert "after iteration 6; the checkpoint of iteration 3 is good" in outcome.err
    assert len(made) == 6, "the checkpoint that falls due after 6 asks before it saves"
    assert [row["number"] for row in events(run, "skipped_step")] == [2]


def test_skip(earlybird: Any, tmp_path: Path, spoil: Callable[..., list[int]]) -> None:
    run = tmp_path / "run"
    spoil(2, 3, 6)
    outcome = earlybird.train(run, "health.non_finite=skip", "run.log_every=2")
    assert (outcome.code, outcome.json["status"]) == (0, "completed")
    assert [(row["number"], row["reason"]) for row in events(run, "skipped_step")] == [
        (4, "non_finite"),
        (2, "non_finite"),
    ]
    found = load_latest(run)
    assert found is not None
    assert all(value.isfinite().all() for value in found.tensors.values())
    assert earlybird("report", run).code == 0
    spoil(*range(9))
    outcome = earlybird.train(tmp_path / "all", "health.non_finite=skip", "health.max_skips=9")
    assert outcome.code == 3
    assert "in a row" in outcome.err


def test_rollback(earlybird: Any, tmp_path: Path, spoil: Callable[..., list[int]]) -> None:
    """A fault that does not repeat leaves no trace in the weights; one that does ends the run."""
    run, whole = tmp_path / "run", tmp_path / "whole"
    settings = ["health.non_finite=rollback", "checkpoint.every=2steps", "run.log_every=1", "meta.interval=2"]
    settings += ["run.record_ids=true"]
    assert earlybird.train(whole, *settings).code == 0
    spoil(5, 9)
    outcome = earlybird.train(run, *settings)
    assert (outcome.code, outcome.json["status"]) == (0, "completed"), outcome.err
    assert [row["left_at"] for row in events(run, "rolled back")] == [6, 8]
    assert [row["folder"] for row in events(run, "goes on from")] == ["step-0000004", "step-0000006"]
    assert alike(run, whole)
    ledger = read_ledger(run)
    assert (len(ledger), unequal(ledger, 72, 16)) == (9, ""), "what was trained again counts once"
    spoil(*range(5, 99))
    outcome = earlybird.train(tmp_path / "ever", *settings, "health.max_rollbacks=2")
    assert outcome.code == 3
    assert len(events(tmp_path / "ever", "rolled back")) == 2
    spoil(0)
    outcome = earlybird.train(tmp_path / "early", *settings)
    assert (outcome.code, "nothing was saved yet" in outcome.err) == (3, True)


def test_torchrun_does_not_repeat_what_diverged(
    earlybird: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[..., list[int]]
) -> None:
    """Its restart ends at once, with the same code and one line; a start by hand goes on."""
    run = tmp_path / "run"
    made, settings = spoil(5), ["checkpoint.every=3steps", "run.log_every=4"]
    assert earlybird.train(run, *settings).code == 3
    logged = (run / "log.jsonl").read_bytes()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    outcome = earlybird.train(run, *settings)
    assert (outcome.code, outcome.err.count("\n")) == (3, 1)
    assert outcome.err.startswith("earlybird: not started again: training diverged: a gradient is not finite")
    assert (len(made), (run / "log.jsonl").read_bytes()) == (6, logged)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert earlybird.train(run, *settings).json["status"] == "completed"


# --- signs of trouble ---


def reading(loss: list[float], weights: list[list[float]] | None = None) -> Reading:
    return Reading(loss, [0.0] * len(loss), None, weights, None, None, 1, 1, 1.0, 0.0, 0.0, 0, Own(1, [1.0], 0.0))


def test_a_loss_spike_is_told_once() -> None:
    signs = Signs(0.5)
    for loss in np.linspace(4.0, 1.0, USUAL):
        assert signs.trained(reading([float(loss), 1.0])) == []
    (told,) = signs.trained(reading([5.2, 1.2]))
    assert told[0] == "loss spike"
    assert (told[1]["exit"], told[1]["loss"]) == (1, 5.2)
    assert signs.trained(reading([6.0, 1.2])) == []
    assert signs.trained(reading([float("nan"), 1.2])) == []
    assert [name for name, _ in signs.trained(reading([9.0, 1.2]))] == ["loss spike"]


def test_saturated_weights() -> None:
    signs = Signs(0.5)
    assert signs.trained(reading([1.0, 1.0], [[0.5, 1.0, 1.5], [0.6, 1.4, 1.4]])) == []
    told = signs.trained(reading([1.0, 1.0], [[0.5, 1.5, 1.5], [0.6, 1.4, 1.4]]))
    assert [(name, fields["exit"]) for name, fields in told] == [("sample weights saturated", 1)]
    assert Signs(None).trained(reading([1.0])) == []


def test_exit_collapse() -> None:
    def rows(*top1: float) -> list[AnytimeRow]:
        return [{"exit": k, "top1": t, "top5": 0.0, "loss": 0.0, "num_images": 1} for k, t in enumerate(top1, start=1)]

    signs = Signs(None)
    assert signs.evaluated(rows(50, 40, 60)) == []
    assert signs.evaluated(rows(50, 49, 60)) == [], "within the margin: the count starts again"
    assert signs.evaluated(rows(50, 40, 60)) == []
    assert signs.evaluated(rows(50, 40, 45)) == []
    told = signs.evaluated(rows(50, 40, 45))
    assert told == [("exit collapse", {"exit": 2, "top1": 40, "below_exit": 1})]
    assert [fields["exit"] for _, fields in signs.evaluated(rows(50, 40, 45))] == [3]


def test_stragglers() -> None:
    """By their own work alone, once it lasts; told again after it was gone."""
    own = [Own(8, [1.0, 1.0, 1.0], waited).work_seconds for waited in (2.4, 2.4, 1.2, 2.4)]
    scores = straggler_scores(own)
    assert scores == pytest.approx([1.0, 1.0, 3.0, 1.0])
    assert straggler_scores([0.0, 0.0]) == [1.0, 1.0]
    signs = Signs(None)
    for _ in range(2):
        assert [signs.compared(scores) for _ in range(STRAGGLER_TIMES - 1)] == [[]] * (STRAGGLER_TIMES - 1)
        assert signs.compared(scores) == [("straggler", {"rank": 2, "score": 3.0})]
        assert signs.compared(scores) == []
        assert signs.compared([1.0] * 4) == []


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"max_skips": 0}, r"health\.max_skips is 0"),
        ({"max_rollbacks": 0}, r"health\.max_rollbacks is 0"),
        ({"watchdog_factor": 0.5}, r"health\.watchdog_factor is 0\.5; it must be at least 1, or 0"),
        ({"watchdog_floor": "5steps"}, r"health\.watchdog_floor is '5steps'; it must be a time"),
    ],
)
def test_config_refuses(setting: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        HealthConfig(**setting)
