"""The three forms of the meta gradient agree, and agree with the authors' program."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from dataloading.batch import Batch
from trainer.config import Config
from trainer.learning import meta_gradient as meta_gradient_module
from trainer.learning import tangent_replay
from trainer.learning.forward import HalfForward
from trainer.learning.meta_gradient import Form, MetaConfig, Schedule, Update, judged, meta_gradient, meta_step
from trainer.learning.optim import OptimConfig
from trainer.learning.precision import PrecisionConfig
from trainer.learning.sample_weights import Centre, SampleWeightsConfig, weigh
from trainer.learning.state import Progress, TrainState
from trainer.learning.tangent_replay import RULES
from trainer.learning.train_step import train_step
from trainer.models.authors_names import (
    authors_names,
    from_authors,
    model_config_from_authors_options,
    weight_net_from_authors,
)
from trainer.models.config import ModelConfig, msdnet_cifar, msdnet_imagenet, ranet_cifar, ranet_imagenet
from trainer.models.weight_net import WeightNetConfig
from trainer.run import snapshot
from trainer.run.build import build_state
from trainer.run.distributed import Ranks

VECTORS = Path(os.environ.get("EARLYBIRD_VECTORS", Path(__file__).resolve().parents[4] / "shared" / "vectors"))
ALONE = Ranks(0, 1, 0, 1, torch.device("cpu"))


def state_of(
    model: ModelConfig,
    *,
    form: Form = "exact",
    schedule: Schedule = "paper",
    centre: Centre = "mat",
    dtype: str = "float64",
    update_batch: int = 8,
    accumulation: int = 1,
    nesterov: bool = False,
    ratio: float = 0.75,
    difference: float = 1e-3,
    compiled: bool = False,
    channels_last: bool = False,
) -> TrainState:
    config = Config(
        recipe="test",
        model=model,
        optim=OptimConfig(update_batch, base_batch=update_batch, nesterov=nesterov, accumulation=accumulation),
        sample_weights=SampleWeightsConfig(epsilon=0.8, centre=centre),
        weight_net=WeightNetConfig(depth=2, width=10),
        meta=MetaConfig(form=form, schedule=schedule, ratio=ratio, difference=difference),
        precision=PrecisionConfig(dtype=dtype, channels_last="on" if channels_last else "off", compile=compiled),
    )
    return build_state(config, 10, Progress(0, 100), ALONE)


def batch_of(num_images: int, size: int = 32, dtype: torch.dtype = torch.float64) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(num_images, 3, size, size, generator=generator, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, 10, (num_images,), generator=generator)
    return Batch(images, labels, np.arange(num_images))


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def gradient_after(state: TrainState, batch: Batch, steps: int = 1) -> Tensor:
    """d meta_loss / d w of the first half, after some real steps (so that momentum is there)."""
    for _ in range(steps):
        for a, _b in batch.crossed_halves():
            train_step(state, HalfForward(state.network, a))
    a, b = next(batch.crossed_halves())
    forward = HalfForward(state.network, a, record=True)
    values = forward.values
    assert state.weight_net is not None
    weights = weigh(state.weight_net, values.losses, values.confidences, state.config.sample_weights)
    return meta_gradient(state, forward, weights, b)[0]


@pytest.mark.parametrize("centre", ["row", "col", "mat"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_exact_equals_double_backward(centre: Centre, nesterov: bool) -> None:
    model, batch = msdnet_cifar(3), batch_of(16)
    expected = gradient_after(state_of(model, form="double_backward", centre=centre, nesterov=nesterov), batch)
    actual = gradient_after(state_of(model, centre=centre, nesterov=nesterov), batch)
    assert relative(actual, expected) < 1e-9


@pytest.mark.parametrize(
    ("model", "size", "num_images"),
    [
        (dataclasses.replace(msdnet_imagenet(1), first_channels=8, growth=4), 224, 4),
        (dataclasses.replace(ranet_cifar("c1"), first_channels=8, growth=4), 32, 12),
        (dataclasses.replace(ranet_cifar("c2"), first_channels=8, growth=4, base=1, step=1), 32, 8),
        (dataclasses.replace(ranet_imagenet(), first_channels=4, growth=4, base=1, step=1), 224, 4),
        (dataclasses.replace(msdnet_cifar(3), batch_norm="running"), 32, 12),
    ],
    ids=["imagenet", "ranet", "ranet-equal-scales", "ranet-imagenet", "running-statistics"],
)
def test_every_net_is_replayed_exactly(model: ModelConfig, size: int, num_images: int) -> None:
    batch = batch_of(num_images, size)
    states = [state_of(model, form=form, update_batch=num_images // 2) for form in ("double_backward", "exact")]
    assert states[1].network.tangents == "replayed"
    expected, actual = (gradient_after(state, batch) for state in states)
    assert relative(actual, expected) < 1e-9


def test_tangents_stay_channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers, and no layer gets a tangent in another layout than its features'."""
    lost: list[str] = []

    def watched(rule: Callable[..., Tensor], leaf: torch.nn.Module, *given: Any) -> Tensor:
        out = rule(leaf, *given)
        if out.dim() == 4 and not out.is_contiguous(memory_format=torch.channels_last):
            lost.append(type(leaf).__name__)
        return out

    rules = {kind: (keep, functools.partial(watched, rule)) for kind, (keep, rule) in RULES.items()}
    monkeypatch.setattr(tangent_replay, "RULES", rules)
    model, batch = dataclasses.replace(msdnet_imagenet(1), first_channels=8, growth=4), batch_of(4, 224)
    plain, last = (state_of(model, update_batch=2, channels_last=channels_last) for channels_last in (False, True))
    expected = gradient_after(plain, batch)
    assert lost, "NCHW is seen as such"
    lost.clear()
    images = batch.images.contiguous(memory_format=torch.channels_last)
    assert relative(gradient_after(last, dataclasses.replace(batch, images=images)), expected) < 1e-9
    assert not lost


def test_accumulation_changes_nothing_but_batch_norm() -> None:
    """With running statistics the micro-batches are independent: 4 of them give the gradient of one."""
    model = dataclasses.replace(msdnet_cifar(3), batch_norm="running")
    expected = gradient_after(state_of(model), batch_of(16))
    assert relative(gradient_after(state_of(model, accumulation=4), batch_of(16)), expected) < 1e-9


def test_accumulation_matches_double_backward_of_micro_batches() -> None:
    """Dual tensors over micro-batches: two equal micro-batches in each half are the half repeated."""
    model, small = msdnet_cifar(3), batch_of(8)
    rows = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7])
    twice = Batch(small.images[rows], small.labels[rows], rows.numpy())
    accumulated = gradient_after(state_of(model, accumulation=2, ratio=1e-9), twice)
    expected = gradient_after(state_of(model, form="double_backward", update_batch=4, ratio=1e-9), small)
    assert relative(accumulated[:4] * 2, expected) < 1e-9


def test_finite_difference_is_near() -> None:
    """At a smooth point (running statistics, tiny step) the central difference has the exact gradient's direction."""
    batch = batch_of(16)
    expected = gradient_after(state_of(msdnet_cifar(3)), batch)
    actual = gradient_after(state_of(msdnet_cifar(3), form="finite_difference", difference=1e-7), batch)
    assert relative(actual, expected) < 1e-3


def test_finite_difference_has_no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def seeing(*call: Any) -> Any:
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cudnn.conv.fp32_precision))
        return functional_call(*call)

    monkeypatch.setattr(meta_gradient_module, "functional_call", seeing)
    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.conv.fp32_precision
    gradient_after(state_of(msdnet_cifar(3), form="finite_difference"), batch_of(8))
    assert len(seen) == 2
    assert all(not allowed and precision != "tf32" for allowed, precision in seen)
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.conv.fp32_precision) == before == (True, "tf32")


@pytest.mark.parametrize("form", ["exact", "double_backward", "finite_difference"])
def test_meta_step_moves_the_weight_net_only(form: Form) -> None:
    state, batch = state_of(msdnet_cifar(3), form=form), batch_of(16)
    a, b = next(batch.crossed_halves())
    train_step(state, HalfForward(state.network, a))  # momentum
    forward = HalfForward(state.network, a, record=True)
    assert state.weight_net is not None
    before = {k: v.clone() for k, v in state.network.module.state_dict().items()}
    buffers = [s["momentum_buffer"].clone() for s in state.optimizer.state.values()]
    weight_net = [p.detach().clone() for p in state.weight_net.parameters()]
    loss = meta_step(state, forward, b)["meta_loss"]
    assert loss.isfinite()
    for name, value in state.network.module.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in state.network.parameters.values())
    for held, slot in zip(buffers, state.optimizer.state.values(), strict=True):
        assert torch.equal(held, slot["momentum_buffer"])
    assert not any(torch.equal(p, q) for p, q in zip(state.weight_net.parameters(), weight_net, strict=True))
    train_step(state, forward)  # the shared graph still serves the real update


def online_gradient(state: TrainState, batch: Batch, *, record: bool = True) -> Tensor:
    """d meta_loss / d w of the first half's real update, judged by the second half, after a step of each half."""
    for a, _b in batch.crossed_halves():
        train_step(state, HalfForward(state.network, a))
    a, b = next(batch.crossed_halves())
    forward = HalfForward(state.network, a, record=record)
    assert state.weight_net is not None
    weights = weigh(state.weight_net, forward.values.losses, forward.values.confidences, state.config.sample_weights)
    update = Update(weights, forward.linearised(keep=True))
    train_step(state, forward)
    return judged(state, update, HalfForward(state.network, b))[0]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("record", [True, False], ids=["replay", "dual-tensors"])
def test_online_judges_the_real_update(nesterov: bool, record: bool) -> None:
    """The weights have moved by then; the derivative is still that at the parameters before the update."""
    model, batch = msdnet_cifar(3), batch_of(16)
    expected = gradient_after(state_of(model, form="double_backward", nesterov=nesterov), batch)
    state = state_of(model, schedule="online", nesterov=nesterov)
    assert relative(online_gradient(state, batch, record=record), expected) < 1e-9


def test_online_accumulates() -> None:
    model = dataclasses.replace(msdnet_cifar(3), batch_norm="running")
    expected = gradient_after(state_of(model, form="double_backward"), batch_of(16))
    actual = online_gradient(state_of(model, schedule="online", accumulation=4), batch_of(16))
    assert relative(actual, expected) < 1e-9


def test_online_step_left_out_teaches_nothing() -> None:
    """Where fp16's loss scale overflows the backbone stays, whatever the weights; scaled, the rest is as unscaled."""
    batch = batch_of(16)
    expected = gradient_after(state_of(msdnet_cifar(3)), batch)
    state = state_of(msdnet_cifar(3), schedule="online")
    state.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    assert relative(online_gradient(state, batch), expected) < 1e-9

    a, b = next(batch.crossed_halves())
    forward = HalfForward(state.network, a, record=True)
    meta_step(state, forward, b)
    forward.backward(torch.full((8, 3), torch.inf, dtype=torch.float64), state.scaler.scale)
    state.step_backbone()
    assert state.update is not None
    slope, _ = judged(state, state.update, HalfForward(state.network, b))
    assert torch.equal(slope, torch.zeros_like(slope))


def test_online_step_that_was_not_finite_teaches_nothing() -> None:
    """Losses are finite, a gradient is not, and no scaler is there: the guard leaves the update out."""
    batch, state = batch_of(16), state_of(msdnet_cifar(3), schedule="online")
    a, b = next(batch.crossed_halves())
    forward = HalfForward(state.network, a, record=True)
    meta_step(state, forward, b)
    forward.backward(torch.full((8, 3), torch.inf, dtype=torch.float64), state.scaler.scale)
    state.step_backbone()
    assert state.update is not None
    slope, _ = judged(state, state.update, HalfForward(state.network, b))
    assert torch.equal(slope, torch.zeros_like(slope))


def test_online_moves_the_weight_net_once_an_iteration_and_keeps_nothing() -> None:
    state, batch = state_of(msdnet_cifar(3), schedule="online"), batch_of(16)
    assert state.weight_net is not None
    tapes, moved = [], []
    for a, b in batch.crossed_halves():
        before = [p.detach().clone() for p in state.weight_net.parameters()]
        forward = HalfForward(state.network, a, record=True)
        tapes.append(weakref.ref(forward._tape))
        metrics = meta_step(state, forward, b)
        train_step(state, forward)
        moved.append(any(not torch.equal(p, q) for p, q in zip(state.weight_net.parameters(), before, strict=True)))
        assert ("meta_loss" in metrics) is moved[-1]
    assert moved == [False, True]
    state.advance()
    assert [tape() for tape in tapes] == [None, None]


def test_online_resumes_bit_for_bit() -> None:
    """Nothing of the schedule outlives an iteration: what a checkpoint holds is all there is."""
    batch = batch_of(16)

    def iterate(state: TrainState) -> dict[str, Tensor]:
        for a, b in batch.crossed_halves():
            forward = HalfForward(state.network, a, record=True)
            meta_step(state, forward, b)
            train_step(state, forward)
        state.advance()
        return {name: tensor.clone() for name, tensor in snapshot.take(state)[0].items()}

    straight, resumed = (state_of(msdnet_cifar(3), schedule="online") for _ in range(2))
    snapshot.restore(resumed, iterate(straight), snapshot.take(straight)[1])
    expected, actual = iterate(straight), iterate(resumed)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_online_has_no_double_backward() -> None:
    with pytest.raises(ValueError, match=r"meta\.schedule online"):
        MetaConfig(form="double_backward", schedule="online")


def test_a_net_without_rules_is_followed_by_dual_tensors() -> None:
    batch, grads = batch_of(16), []
    forms: tuple[Form, ...] = ("double_backward", "exact")
    for form in forms:
        state = state_of(msdnet_cifar(3), form=form)
        for layer in [m for m in state.network.module.modules() if hasattr(m, "relu")]:
            layer.relu = torch.nn.Softplus()
        grads.append(gradient_after(state, batch))
    assert state.network.tangents == "dual"
    assert HalfForward(state.network, batch[:8], record=True)._tape is None
    assert relative(grads[1], grads[0]) < 1e-9


@pytest.mark.parametrize(("schedule", "channels_last"), [("paper", False), ("paper", True), ("online", False)])
def test_compiled_steps_are_the_eager_ones(
    schedule: Schedule, channels_last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One compiled graph serves all passes, at the net's parameters and at those ahead, and another one the tangents
    ("aot_eager": all but code)."""
    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **how: compile_(module, backend="aot_eager", **how))
    model = dataclasses.replace(msdnet_cifar(2), first_channels=8, growth=4, classifier_channels=16, base=1, step=1)
    ends = []
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch._functorch.config.patch(donated_buffer=True):  # whatever it is, it is put back
        for compiled in (False, True):
            state = state_of(model, schedule=schedule, compiled=compiled, channels_last=channels_last)
            batch = batch_of(16)
            images = batch.images.contiguous(memory_format=state.network.precision.memory_format)
            for _ in range(2):
                for a, b in dataclasses.replace(batch, images=images).crossed_halves():
                    forward = HalfForward(state.network, a, record=True)
                    meta_step(state, forward, b)
                    train_step(state, forward)
                state.advance()
            assert state.weight_net is not None
            tensors = [*state.network.module.state_dict().values(), *state.weight_net.state_dict().values()]
            ends.append(torch.cat([t.detach().double().flatten() for t in tensors]))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2
    torch._dynamo.reset()
    assert relative(ends[1], ends[0]) < 1e-9


def test_bf16_points_the_same_way() -> None:
    """Same weights, after a few steps in float32: bf16's meta gradient against bf16's double backward."""
    batch = batch_of(64, dtype=torch.float32)
    grads = [
        gradient_after(state_of(msdnet_cifar(3), form=form, dtype="bf16", update_batch=32), batch)
        for form in ("double_backward", "exact")
    ]
    cosine = torch.nn.functional.cosine_similarity(grads[0].flatten(), grads[1].flatten(), dim=0)
    assert cosine > 0.999


@pytest.mark.parametrize("form", ["exact", "double_backward", "finite_difference"])
@pytest.mark.parametrize("path", sorted(VECTORS.glob("meta_*.npz")), ids=lambda p: p.stem)
def test_reference_vectors(path: Path, form: Form) -> None:
    """Losses, weights, routing, meta loss and the weight net's gradient of the authors' program."""
    vector = np.load(path)
    settings = json.loads(str(vector["settings"]))
    options = json.loads(str(np.load(path.with_name(f"model_{settings['model']}.npz"))["config"]))
    model = model_config_from_authors_options(options)
    num = len(vector["labels"]) // 2
    config = Config(
        recipe="test",
        model=model,
        optim=OptimConfig(
            num,
            base_lr=settings["lr"],
            base_batch=num,
            momentum=settings["momentum"],
            weight_decay=settings["weight_decay"],
            nesterov=settings["nesterov"],
        ),
        sample_weights=SampleWeightsConfig(epsilon=settings["epsilon"], centre=settings["constraint"]),
        weight_net=WeightNetConfig(depth=settings["layers"], width=settings["hidden"]),
        meta=MetaConfig(form=form, ratio=settings["exit_ratio"], difference=1e-7),
        precision=PrecisionConfig(dtype="float64"),
    )
    num_classes = vector["meta_logits"].shape[2]
    state = build_state(config, num_classes, Progress(0, 1), ALONE)
    state.network.module.load_state_dict(from_authors(model, _part(vector, "weights/")))
    assert state.weight_net is not None
    state.weight_net.load_state_dict(weight_net_from_authors(_part(vector, "weight_net/")))
    momentum = _part(vector, "momentum/")
    for ours, theirs in authors_names(model).items():
        if theirs in momentum:
            state.optimizer.state[state.network.parameters[ours]]["momentum_buffer"] = momentum[theirs]

    batch = Batch(torch.from_numpy(vector["images"]), torch.from_numpy(vector["labels"]), np.arange(2 * num))
    a, b = next(batch.crossed_halves())
    forward = HalfForward(state.network, a, record=True)
    values = forward.values
    assert relative(values.losses, torch.from_numpy(vector["losses"])) < 1e-7
    weights = weigh(state.weight_net, values.losses, values.confidences, config.sample_weights)
    assert relative(weights.values, torch.from_numpy(vector["weights_out"])) < 1e-7
    cotangent, meta_loss = meta_gradient(state, forward, weights, b)
    assert abs(float(meta_loss) / float(vector["meta_loss"]) - 1) < 1e-7
    weights.backward(cotangent)
    expected = weight_net_from_authors(_part(vector, "weight_net_grad/"))
    tolerance = 1e-3 if form == "finite_difference" else 1e-7
    for name, parameter in state.weight_net.named_parameters():
        assert parameter.grad is not None
        assert relative(parameter.grad, expected[name]) < tolerance, name


def _part(vector: np.lib.npyio.NpzFile, prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): torch.from_numpy(vector[k]) for k in vector.files if k.startswith(prefix)}
