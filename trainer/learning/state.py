"""All that a run remembers: backbone, weight net, their optimizers, the loss scaler and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from trainer.learning.collectives import sum_over_ranks
from trainer.learning.forward import Network
from trainer.learning.guard import Guard, choose
from trainer.learning.optim import cosine, set_learning_rate, start_momentum, step_if
from trainer.models.weight_net import WeightNet

if TYPE_CHECKING:
    from trainer.config import Config
    from trainer.learning.meta_gradient import Update
    from trainer.learning.sample_weights import SampleWeights


@dataclass
class Progress:
    """iteration  the next one to run; total  iterations of the whole run; warmup  iterations of the linear rise"""

    iteration: int
    total: int
    warmup: int = 0


@dataclass
class TrainState:
    """One owner of everything that training moves.

    update  the iteration's first update, until its second half has judged it (meta.schedule online); else None
    guard   leaves out updates that are not finite
    """

    config: Config
    network: Network
    optimizer: torch.optim.Optimizer
    weight_net: WeightNet | None
    weight_net_optimizer: torch.optim.Optimizer | None
    scaler: torch.amp.GradScaler
    progress: Progress
    lr: float = field(init=False, default=0.0)
    update: Update | None = field(init=False, default=None)
    guard: Guard = field(init=False)

    def __post_init__(self) -> None:
        self.guard = Guard(self.network.buffers, self.network.precision.device)
        self.set_learning_rates()

    @property
    def meta_due(self) -> bool:
        return self.weight_net is not None and self.progress.iteration % self.config.meta.interval == 0

    @property
    def rate(self) -> Tensor | float:
        """What an update multiplies by: `lr`, or a device scalar that holds it where iterations are replayed."""
        rate: Tensor | float = self.optimizer.param_groups[0]["lr"]
        return rate

    @property
    def weight_net_lr(self) -> float | None:
        """Its learning rate now; None in the unweighted baseline."""
        return None if self.weight_net_optimizer is None else float(self.weight_net_optimizer.param_groups[0]["lr"])

    @property
    def scaled(self) -> bool:
        return self.scaler.is_enabled()

    def loss_scale(self) -> Tensor | float:
        """fp16's loss scale as a device scalar; 1.0 in every other precision."""
        if not self.scaled:
            return 1.0
        device = self.network.precision.device
        return self.scaler.scale(torch.ones((), device=device))

    def advance(self) -> None:
        """One iteration (both halves) is done."""
        assert self.update is None
        self.progress.iteration += 1
        self.set_learning_rates()

    def set_learning_rates(self) -> None:
        factor = cosine(self.progress.iteration, self.progress.total, self.progress.warmup)
        self.lr = self.config.optim.peak_lr * factor
        set_learning_rate(self.optimizer, self.lr)
        if self.weight_net_optimizer is not None:
            set_learning_rate(self.weight_net_optimizer, self.config.meta.lr * factor)

    def step_backbone(self) -> None:
        """One optimizer step from .grad, left out on every rank where a gradient is not finite."""
        if not self.optimizer.state:
            start_momentum(self.optimizer)
        finite = self.guard.finite([p.grad for p in self.network.parameters.values() if p.grad is not None])
        if self.scaled:
            self.scaler.step(self.optimizer)
            self.scaler.update()
        else:
            step_if(finite, self.optimizer)
        self.optimizer.zero_grad(set_to_none=True)

    def step_weight_net(self, weights: SampleWeights, cotangent: Tensor) -> None:
        """One Adam step of the weight net along d meta_loss / d w = cotangent [n, K], summed over all ranks; where it
        is not finite nothing moves."""
        assert self.weight_net is not None
        assert self.weight_net_optimizer is not None
        self.weight_net_optimizer.zero_grad(set_to_none=True)
        weights.backward(cotangent)
        parameters: list[nn.Parameter] = list(self.weight_net.parameters())
        sums = sum_over_ranks([p.grad for p in parameters if p.grad is not None])
        for parameter, total in zip(parameters, sums, strict=True):
            parameter.grad = total
        # Not through the loss scaler: the cotangent is unscaled. The step is taken and, where a gradient was not
        # finite, taken back, rather than asked about, which would wait for the GPU.
        finite = torch.stack([total.isfinite().all() for total in sums]).all()
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad = torch.where(finite, parameter.grad, 0.0)
        moments = [
            value for p in parameters for value in self.weight_net_optimizer.state[p].values() if value.shape == p.shape
        ]
        moved = [*(p.detach() for p in parameters), *moments]
        before = [value.clone() for value in moved]
        self.weight_net_optimizer.step()
        choose(finite, moved, before)
