"""The online schedule: a real update is judged by the half that trains next."""

from __future__ import annotations

import dataclasses
import weakref

import pytest
import torch
from torch import Tensor

from dataloading.batch import Batch
from tests.trainer.learning.meta_states import batch_of, gradient_after, relative, state_of
from trainer.learning.forward import HalfForward
from trainer.learning.meta_gradient import MetaConfig, Update, judged, meta_step
from trainer.learning.sample_weights import weigh
from trainer.learning.state import TrainState
from trainer.learning.train_step import train_step
from trainer.models.config import msdnet_cifar
from trainer.run import snapshot


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
