"""How the weight net learns: the gradient of the meta loss through one step of the backbone.

METHOD: training, meta update. With v the gradient of the meta loss at the looked-ahead parameters,

    d meta_loss / d w_ik = -(lr * f / n) * <v, d loss_ik / d theta>,   f = 1 (or 1 + momentum with Nesterov),

for n samples over all ranks, since the looked-ahead parameters are linear in the weights w.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.func import functional_call

from dataloading.batch import Batch
from kernels.exit_routing import quotas, route
from kernels.lookahead import lookahead
from trainer.learning.collectives import gather_rows, mean_over_ranks, sum_over_ranks, world_size
from trainer.learning.forward import HalfForward, Linearised, untracked_batch_norm
from trainer.learning.layout import laid_out_as
from trainer.learning.optim import momentum_buffers
from trainer.learning.sample_weights import SampleWeights, weigh
from trainer.learning.state import TrainState

Form = Literal["exact", "double_backward", "finite_difference"]
Schedule = Literal["paper", "online"]


@dataclass(frozen=True)
class MetaConfig:
    """Group `meta`.

    interval     the weight net is updated in every interval-th iteration (the paper's I)
    ratio        share of samples leaving at exit k in the meta loss is proportional to ratio^k (q)
    form         exact: one directional derivative, no second-order graph; double_backward: the specification;
                 finite_difference: two forwards, for operations without a forward-mode rule
    schedule     paper: each half looks ahead, virtually, and is judged by the other half; two updates an iteration.
                 online: the first half trains and the second, before it trains, judges that real update; one update
                 an iteration, for half the price of one of the paper's. Nothing outlives the iteration
    lr, weight_decay  of the weight net's Adam
    difference   length of the finite difference's step in parameter space
    """

    interval: int = 1
    ratio: float = 0.75
    form: Form = "exact"
    schedule: Schedule = "paper"
    lr: float = 1e-4
    weight_decay: float = 1e-4
    difference: float = 1e-3

    def __post_init__(self) -> None:
        if self.interval < 1:
            raise ValueError(f"meta.interval is {self.interval}; it must be at least 1 iteration")
        for name in ("ratio", "lr", "difference"):
            if getattr(self, name) <= 0:
                raise ValueError(f"meta.{name} is {getattr(self, name)}; it must be positive")
        if self.schedule == "online" and self.form == "double_backward":
            raise ValueError(
                "meta.form is double_backward, which differentiates through a virtual step, with meta.schedule online, "
                "whose step is the real one; use meta.form=exact or meta.schedule=paper"
            )
        if self.weight_decay < 0:
            raise ValueError(f"meta.weight_decay is {self.weight_decay}; it must not be negative")


@dataclass(frozen=True)
class Update:
    """An update of the backbone as the weight net is judged by it: the weights it took, and its half's losses."""

    weights: SampleWeights
    losses: Linearised


def meta_step(state: TrainState, forward: HalfForward, meta_half: Batch) -> dict[str, Tensor]:
    """Move the weight net once, along the gradient of the meta loss; the backbone stays.

    forward    the pass over the half that trains, at the backbone's parameters
    meta_half  the other half, on which the paper's schedule takes the meta loss
    Returns device scalars: meta_loss. With the online schedule the iteration's first half is only kept, and {} comes
    back; its update then is what the second half's pass judges.
    """
    assert state.weight_net is not None
    if state.config.meta.schedule == "online" and state.update is not None:
        update, state.update = state.update, None
        judge = forward
        if not state.network.judges_as_it_trains:
            here = [p.detach().clone() for p in state.network.parameters.values()]
            judge = HalfForward(state.network, forward.half, _leaves(state, here), judging=True)
        cotangent, meta_loss = judged(state, update, judge)
        state.step_weight_net(update.weights, cotangent)
        return {"meta_loss": meta_loss}
    weights = weigh(state.weight_net, forward.values.losses, forward.values.confidences, state.config.sample_weights)
    if state.config.meta.schedule == "online":
        state.update = Update(weights, forward.linearised(keep=True))
        return {}
    cotangent, meta_loss = meta_gradient(state, forward, weights, meta_half)
    state.step_weight_net(weights, cotangent)
    return {"meta_loss": meta_loss}


def meta_gradient(
    state: TrainState, forward: HalfForward, weights: SampleWeights, meta_half: Batch
) -> tuple[Tensor, Tensor]:
    """(d meta_loss / d w [n, K] of this rank's samples, meta_loss over all ranks), in the configured form."""
    if state.config.meta.form == "double_backward":
        return _by_double_backward(state, forward.half, weights, meta_half)
    scale = state.loss_scale()
    grads = forward.gradient(weights.values / (len(weights.values) * world_size()) * scale, over_ranks=True)
    ahead = _look_ahead(state, list(torch._foreach_div(grads, scale)) if state.scaled else grads)
    meta = HalfForward(state.network, meta_half, ahead, judging=True)
    return judged(state, Update(weights, forward.linearised()), meta)


def judged(state: TrainState, update: Update, meta: HalfForward) -> tuple[Tensor, Tensor]:
    """What `meta_gradient` gives, for an update that leads to the parameters of the pass `meta`."""
    scale = state.loss_scale()
    cotangent, meta_loss = meta_cotangent(meta.values.losses, meta.values.confidences, state.config.meta.ratio)
    v = meta.gradient(cotangent * scale, over_ranks=True)
    stretch: Tensor | float = scale
    if state.scaled:
        # The tangent pass is linear: along a direction as long as the parameters, fp16 neither over- nor underflows.
        stretch = _norm(list(update.losses.at.values())) / _norm(torch._foreach_div(v, scale))
        v = list(torch._foreach_mul(v, stretch / scale))
    if state.config.meta.form == "finite_difference":
        slope = _finite_difference(update.losses, v, state.config.meta.difference)
    else:
        slope = update.losses.along(v)
    optim = state.config.optim
    factor = 1.0 + optim.momentum if optim.nesterov else 1.0
    num_samples = len(update.losses.half) * world_size()
    slope = slope * (-state.rate * factor / num_samples) / stretch
    if state.config.meta.schedule == "online":
        # A real update that was not finite was left out: no weight had a part in where the parameters are.
        now = [p.detach() for p in state.network.parameters.values()]
        steps = torch._foreach_sub(now, list(update.losses.at.values()))
        slope = slope * torch.stack(torch._foreach_norm(steps)).any()
    return slope, meta_loss


def _look_ahead(state: TrainState, grads: list[Tensor]) -> dict[str, Tensor]:
    """The parameters after one step of the real optimizer from its real momentum; leaves of a graph."""
    optim, parameters = state.config.optim, state.network.parameters
    ahead = lookahead(
        [p.detach() for p in parameters.values()],
        grads,
        momentum_buffers(state.optimizer, parameters.values()),
        lr=state.rate,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        nesterov=optim.nesterov,
    )
    return _leaves(state, ahead)


def _leaves(state: TrainState, values: list[Tensor]) -> dict[str, Tensor]:
    """The values by parameter name, leaves of a graph."""
    parameters = state.network.parameters
    pairs = zip(parameters.values(), values, strict=True)
    return {name: torch.nn.Parameter(laid_out_as(*pair)) for name, pair in zip(parameters, pairs, strict=True)}


def meta_cotangent(losses: Tensor, confidences: Tensor, ratio: float) -> tuple[Tensor, Tensor]:
    """The meta loss as weights on the losses [n, K] of this rank's meta samples, and its value over all ranks.

    Every sample of all ranks is sent to one exit; the meta loss is the sum over exits with samples of the mean
    cross-entropy of the exit's own: cotangent[i, k] = 1 / (samples at k) where i leaves at k, else 0.
    """
    num_exits = losses.shape[1]
    everyone, own = gather_rows(confidences)
    leaves_at = route(everyone, quotas(len(everyone), ratio, num_exits))
    taken = leaves_at[:, None] == torch.arange(num_exits, device=leaves_at.device)
    cotangent = taken[own].to(losses.dtype) / taken.sum(dim=0).clamp(min=1)
    (meta_loss,) = sum_over_ranks([(cotangent * losses).sum()])
    return cotangent, meta_loss


def _finite_difference(losses: Linearised, v: list[Tensor], length: float) -> Tensor:
    """Central difference of the losses along v, [n, K]; in float32 whatever the training precision.

    Half precision cannot resolve the difference: its relative error there exceeds 1. Nor can TF32, whose 10 bits of
    mantissa are fp16's and which cuDNN's float32 convolutions have by themselves.
    """
    network, step = losses.network, length / _norm(v)
    moved = []
    with torch.no_grad(), untracked_batch_norm(network.trained), _no_tf32():
        for sign in (1.0, -1.0):
            ends = torch._foreach_add(list(losses.at.values()), torch._foreach_mul(v, sign * step))
            at = dict(zip(losses.at, ends, strict=True))
            rows = []
            for part in losses.parts:
                images = part.images.to(network.precision.parameter_dtype)
                logits = functional_call(network.trained, at, (images,), tie_weights=False)
                rows.append(network.losses(logits, part).losses)
            moved.append(torch.cat(rows))
    return (moved[0] - moved[1]) / (2.0 * step)


@contextmanager
def _no_tf32() -> Iterator[None]:
    """cuDNN computes float32 as float32. One switch for convolutions and recurrent nets: it cannot be read while
    they differ."""
    cudnn = torch.backends.cudnn
    before, cudnn.allow_tf32 = cudnn.allow_tf32, False
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


def _norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all tensors together, a device scalar that is never zero."""
    return torch.stack(torch._foreach_norm([t.detach() for t in tensors])).norm().clamp(min=1e-30)


def _by_double_backward(
    state: TrainState, train_half: Batch, weights: SampleWeights, meta_half: Batch
) -> tuple[Tensor, Tensor]:
    """(d meta_loss / d w, meta_loss) by differentiating through the lookahead: the specification, as the authors do it.

    One backward pass through a second-order graph. Over ranks, the lookahead's gradient has the mean's value and
    this rank's share of the derivative; the meta gradient at the looked-ahead parameters is summed in its backward.
    """
    network, optim = state.network, state.config.optim
    if network.accumulation > 1:
        raise ValueError(
            f"meta.form is double_backward, whose graph must hold the whole half at once, with optim.accumulation "
            f"{network.accumulation}; use optim.accumulation=1 or meta.form=exact"
        )
    parameters = network.parameters
    w = weights.values.clone().requires_grad_()
    logits = network.logits(train_half.images, dict(parameters), eager=True)
    losses = network.losses(logits, train_half, backend="reference").losses
    weighted = (w * losses).sum() / len(losses)
    grads = torch.autograd.grad(weighted, list(parameters.values()), create_graph=True)
    if world_size() > 1:
        means = mean_over_ranks([g.detach() for g in grads])
        grads = tuple(g / world_size() + (m - g.detach() / world_size()) for g, m in zip(grads, means, strict=True))
    ahead = lookahead(
        list(parameters.values()),
        list(grads),
        momentum_buffers(state.optimizer, parameters.values()),
        lr=state.rate,
        momentum=optim.momentum,
        weight_decay=optim.weight_decay,
        nesterov=optim.nesterov,
        backend="reference",
    )
    for theta in ahead:
        theta.register_hook(lambda grad: sum_over_ranks([grad])[0])
    logits = network.logits(meta_half.images, dict(zip(parameters, ahead, strict=True)), eager=True, judging=True)
    meta = network.losses(logits, meta_half, judging=True, backend="reference")
    cotangent, meta_loss = meta_cotangent(meta.losses.detach(), meta.confidences, state.config.meta.ratio)
    # As in the authors' program the pass goes on to the backbone's parameters; what it finds there is dropped.
    grads = torch.autograd.grad(meta.losses, [w, *parameters.values()], cotangent, allow_unused=True)
    assert grads[0] is not None
    return grads[0], meta_loss
