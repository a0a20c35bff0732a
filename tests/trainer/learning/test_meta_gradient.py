"""The three forms of the meta gradient agree, and agree with the authors' program."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from dataloading.batch import Batch
from tests.trainer.learning.meta_states import ALONE, batch_of, gradient_after, relative, state_of
from tests.trainer.learning.without_code import without_code
from trainer.config import Config
from trainer.learning import meta_gradient as meta_gradient_module
from trainer.learning import tangent_replay
from trainer.learning.forward import HalfForward
from trainer.learning.meta_gradient import Form, MetaConfig, Schedule, meta_gradient, meta_step
from trainer.learning.optim import OptimConfig
from trainer.learning.precision import PrecisionConfig
from trainer.learning.sample_weights import Centre, SampleWeightsConfig, weigh
from trainer.learning.state import Progress
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
from trainer.run.build import build_state

VECTORS = Path(os.environ.get("EARLYBIRD_VECTORS", Path(__file__).resolve().parents[4] / "shared" / "vectors"))


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

    def seeing(*call: Any, **how: Any) -> Any:
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cudnn.conv.fp32_precision))
        return functional_call(*call, **how)

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
def test_compiled_steps_are_the_eager_ones(schedule: Schedule, channels_last: bool) -> None:
    """One compiled graph serves all passes, at the net's parameters and at those ahead; another one the tangents."""
    model = dataclasses.replace(msdnet_cifar(2), first_channels=8, growth=4, classifier_channels=16, base=1, step=1)
    ends = []
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    # Whatever donated_buffer is, it is put back.
    with torch._functorch.config.patch(donated_buffer=True), without_code() as tangents:
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
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == len(tangents) == 1
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
