"""Replayed iterations are the ones that Python would have run: recorded here on the CPU as a GPU records them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dataloading.batch import Batch
from tests.trainer.learning.recorded import recorder
from trainer.config import Config
from trainer.learning import graphs
from trainer.learning.graphs import WARM_UP, GraphedIteration, iterating, iteration_of
from trainer.learning.iteration import HalfStep, run_iteration
from trainer.learning.meta_gradient import MetaConfig, Schedule
from trainer.learning.optim import OptimConfig
from trainer.learning.precision import PrecisionConfig, resolve_precision
from trainer.learning.sample_weights import SampleWeightsConfig
from trainer.learning.state import Progress, TrainState
from trainer.models.config import ModelConfig, msdnet_cifar, ranet_cifar
from trainer.run import build, snapshot
from trainer.run.build import build_state
from trainer.run.distributed import Ranks
from trainer.telemetry.window import Window

CPU = torch.device("cpu")
MSDNET = dataclasses.replace(msdnet_cifar(2), first_channels=4, growth=4, classifier_channels=8)
RANET = dataclasses.replace(
    ranet_cifar("c1"),
    num_exits=2,
    scales=(1, 2),
    blocks=(1, 2),
    growth_factors=(2, 1),
    bottleneck_factors=(2, 1),
    growth=4,
)


@pytest.fixture(autouse=True)
def graphs_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """States as on a GPU: rates and counts of steps are tensors."""

    def resolved(config: PrecisionConfig, device: torch.device) -> Any:
        plain = resolve_precision(dataclasses.replace(config, cuda_graphs=False), device)
        return dataclasses.replace(plain, cuda_graphs=config.cuda_graphs)

    monkeypatch.setattr(build, "resolve_precision", resolved)


def state_of(model: ModelConfig = MSDNET, *, cuda_graphs: bool = True, **changes: Any) -> TrainState:
    config = Config(
        recipe="test",
        model=model,
        optim=OptimConfig(4, base_batch=4, warmup_epochs=1.0, nesterov=True),
        sample_weights=SampleWeightsConfig(epsilon=0.8),
        meta=MetaConfig(interval=2, lr=1e-2),
        precision=PrecisionConfig(dtype="float32", cuda_graphs=cuda_graphs),
    )
    config = dataclasses.replace(config, **changes)
    return build_state(config, 5, Progress(0, 40, 4), Ranks(0, 1, 0, 1, CPU))


def batch_of(seed: int, model: ModelConfig = MSDNET) -> Batch:
    generator, size = torch.Generator().manual_seed(seed), 16 if model.net == "ranet" else 32
    images = torch.randn(8, 3, size, size, generator=generator)
    return Batch(images, torch.randint(5, (8,), generator=generator), torch.arange(8).numpy())


def held(state: TrainState) -> list[Tensor]:
    """All that outlives an iteration."""
    tensors = [value for name, value in sorted(snapshot.take(state)[0].items()) if not name.startswith("generator")]
    return [*tensors, state.guard._counts, *(state.guard._kept or [])]


def run(state: TrainState, iteration: Callable[..., list[HalfStep]], num: int) -> list[HalfStep]:
    """Every iteration with another batch and another learning rate; what all halves say."""
    said = []
    for _ in range(num):
        said += iteration(state, batch_of(state.progress.iteration, state.config.model))
        state.advance()
    return said


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sample_weights": SampleWeightsConfig(enabled=False)},
        {"meta": MetaConfig(interval=1, schedule="online", lr=1e-2)},
        {"meta": MetaConfig(form="finite_difference", interval=2)},
        {"optim": OptimConfig(4, base_batch=4, accumulation=2)},
        {"optim": OptimConfig(4, base_batch=4, recompute=True)},
        {"model": RANET},
        {"model": dataclasses.replace(MSDNET, imta="pretrain")},
        {"model": dataclasses.replace(MSDNET, imta="finetune")},
    ],
    ids=["paper", "unweighted", "online", "differences", "accumulation", "recompute", "ranet", "imta-1", "imta-2"],
)
def test_replays_end_with_the_same_bits(changes: dict[str, Any]) -> None:
    """Dual tensors, which accumulation and recomputation need, hold symbolic zeros that a replay writes out: those end
    within rounding."""
    rounding = {"rtol": 1e-5, "atol": 1e-6} if "optim" in changes else {"rtol": 0.0, "atol": 0.0}
    eager, graphed = (state_of(**changes) for _ in range(2))
    num = 2 * WARM_UP + 4
    expected = run(eager, run_iteration, num)
    iteration = GraphedIteration(graphed, recorder(lambda: held(graphed)))
    actual = run(graphed, iteration, num)
    kinds = {False} if eager.weight_net is None else {True} if eager.config.meta.interval == 1 else {False, True}
    assert iteration._graphs.keys() == kinds
    torch.testing.assert_close(held(graphed), held(eager), **rounding)
    for mine, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine.trained, theirs.trained, **rounding)
        torch.testing.assert_close(mine.looked_ahead, theirs.looked_ahead, **rounding)
    assert not torch.equal(actual[-1].trained["losses"], actual[-3].trained["losses"]), "results are copies"


def test_device_rates_train_as_numbers_do() -> None:
    """Both begin every iteration from the same tensors: eight iterations would multiply the rounding of the first."""
    plain, graphed = state_of(cuda_graphs=False), state_of()
    assert isinstance(plain.rate, float)
    assert isinstance(graphed.rate, Tensor)
    for _ in range(8):
        for state in (plain, graphed):
            run(state, run_iteration, 1)
        assert graphed.lr == plain.lr == pytest.approx(float(graphed.rate))
        assert graphed.weight_net_lr == pytest.approx(plain.weight_net_lr)
        for a, b in zip(held(graphed)[:-1], held(plain)[:-1], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        tensors, values = snapshot.take(plain)
        snapshot.restore(graphed, {name: tensor.clone() for name, tensor in tensors.items()}, values)


def test_an_update_that_is_not_finite_is_left_out_of_a_replay_too() -> None:
    state = state_of()
    iteration = GraphedIteration(state, recorder(lambda: held(state)))
    run(state, iteration, 2 * WARM_UP + 2)
    state.guard.read()
    before = {name: tensor.clone() for name, tensor in snapshot.take(state)[0].items()}
    bad = batch_of(99)
    bad.images[:] = float("nan")
    iteration(state, bad)
    assert state.guard.read() == (2, 2)
    moved = {name for name, tensor in snapshot.take(state)[0].items() if not torch.equal(tensor, before[name])}
    assert all(name.endswith("num_batches_tracked") or ".step." in name for name in moved), "counts alone go on"
    state.advance()
    run(state, iteration, 2)
    assert state.guard.read() == (0, 2)


def test_a_restored_state_goes_on_in_a_new_graph() -> None:
    straight, resumed = state_of(), state_of()
    run(straight, GraphedIteration(straight, recorder(lambda: held(straight))), 2 * WARM_UP + 2)
    tensors, values = snapshot.take(straight)
    snapshot.restore(resumed, {name: tensor.clone() for name, tensor in tensors.items()}, values)
    for state in (straight, resumed):
        run(state, GraphedIteration(state, recorder(lambda state=state: held(state))), 2 * WARM_UP + 2)  # type: ignore[misc]
    assert all(torch.equal(a, b) for a, b in zip(held(resumed), held(straight), strict=True))


def test_what_asks_the_host_cannot_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The recorder of these tests is one: it refuses what a GPU's would."""
    state = state_of()

    def asking(state: TrainState, batch: Batch, clock: Any = None) -> list[HalfStep]:
        steps = run_iteration(state, batch)
        float(steps[0].trained["loss"][0])
        return steps

    monkeypatch.setattr(graphs, "run_iteration", asking)
    iteration = GraphedIteration(state, recorder(lambda: held(state)))
    with pytest.raises(RuntimeError, match="the host reads a tensor"):
        run(state, iteration, 2 * WARM_UP + 1)


def test_the_window_knows_that_no_clock_saw_a_replayed_meta_step() -> None:
    state = state_of(meta=MetaConfig(interval=1))
    iteration = GraphedIteration(state, recorder(lambda: held(state)))
    window = Window(2, CPU)
    for num, timed in ((WARM_UP, True), (2, False)):
        for _ in range(num):
            for step in iteration(state, batch_of(0), window.meta_clock):
                window.add(step, 4)
            state.advance()
        reading = window.read()
        assert reading.num_meta_steps == 2 * num
        assert (reading.meta_step_seconds is not None) is timed


def test_a_batch_of_another_size_is_no_replay() -> None:
    state = state_of()
    iteration = GraphedIteration(state, recorder(lambda: held(state)))
    run(state, iteration, 2 * WARM_UP + 2)
    with pytest.raises(RuntimeError, match=r"a graph of \[8, 3, 32, 32\] images got \[4, 3, 32, 32\]"):
        iteration(state, batch_of(0)[:4])


def test_graphs_are_chosen_by_the_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    assert iteration_of(state_of(cuda_graphs=False)) is run_iteration
    monkeypatch.setattr(graphs, "_Recorder", lambda device: recorder(list))
    assert isinstance(iteration_of(state_of()), GraphedIteration)


def test_no_graph_outlives_an_exception_that_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its traceback holds the iteration, and NCCL would wait for the graphs."""
    recordings, queued = [], []
    monkeypatch.setattr(graphs._Lead, "queued", lambda lead: queued.append(lead))

    def record(work: Any) -> Any:
        result, recording = recorder(lambda: held(state))(work)
        recordings.append(recording)
        return result, recording

    monkeypatch.setattr(graphs, "_Recorder", lambda device: record)
    state = state_of()
    kept: list[BaseException] = []
    try:
        with iterating(state) as iteration:
            run(state, iteration, 2 * WARM_UP + 2)
            assert all(recording.operations for recording in recordings)
            assert len(queued) == 2, "replays run ahead no further than _Lead lets them"
            raise FloatingPointError("a loss is not finite")
    except FloatingPointError as error:
        kept.append(error)
    assert len(recordings) == 2
    assert not any(recording.operations for recording in recordings)
    assert isinstance(iteration, GraphedIteration)
    assert not iteration._graphs
    with iterating(state_of(cuda_graphs=False)) as plain:
        assert plain is run_iteration


def test_the_host_is_two_iterations_ahead_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []
    waited: list[int] = []

    class Event:
        def __init__(self, blocking: bool) -> None:
            assert blocking, "a core that spins is one less for the loader"
            self.number = len(begun)

        def record(self, stream: Any) -> None:
            begun.append(self.number)

        def synchronize(self) -> None:
            waited.append(self.number)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: None)
    lead = graphs._Lead(torch.device("cuda", 0))
    for number in range(6):
        lead.queued()
        assert begun == list(range(number + 1))
        assert waited == list(range(max(0, number - 1)))
    graphs._Lead(CPU).queued()
    assert len(begun) == 6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("schedule", ["paper", "online"])
def test_graphs_of_a_gpu_train_as_its_eager_iterations(schedule: Schedule) -> None:
    gpu = torch.device("cuda", 0)
    ends = []
    for cuda_graphs in (False, True):
        meta = MetaConfig(interval=2, schedule=schedule, lr=1e-2)
        config = dataclasses.replace(state_of(cuda_graphs=cuda_graphs).config, meta=meta)
        state = build_state(config, 5, Progress(0, 40, 4), Ranks(0, 1, 0, 1, gpu))
        iteration = iteration_of(state)
        assert isinstance(iteration, GraphedIteration) is cuda_graphs
        for number in range(2 * WARM_UP + 6):
            batch = batch_of(number)
            images = batch.images.to(gpu).contiguous(memory_format=state.network.precision.memory_format)
            iteration(state, dataclasses.replace(batch, images=images, labels=batch.labels.to(gpu)))
            state.advance()
        ends.append(torch.cat([value.double().flatten() for value in state.network.module.state_dict().values()]))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-3, atol=1e-4)
