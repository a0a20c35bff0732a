"""How the backbone's weights move: SGD with a cosine learning rate per iteration."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainer.learning.layout import laid_out_as


@dataclass(frozen=True)
class OptimConfig:
    """Group `optim` (METHOD: training).

    update_batch     images in one backbone update, over all ranks; an iteration loads two update batches
    base_lr, base_batch  learning rate = base_lr * update_batch / base_batch
    momentum, nesterov, weight_decay  of SGD; weight decay acts on everything
    label_smoothing  mass spread evenly over the classes, in the training and the meta loss
    warmup_epochs    linear rise of the learning rate from zero before the cosine
    accumulation     micro-batches an update batch is run in, per rank
    micro_batch      instead: most images in a micro-batch of a rank, so that memory stays when the number of ranks
                     changes; 0: as accumulation says
    recompute        activation checkpointing: blocks drop their activations after the forward pass and compute them
                     again in the backward one; less memory, more time, the same numbers
    backend          torch: its fused SGD; plain: torch's SGD as it comes by itself, to compare with; apex: NVIDIA's
                     fused SGD, where it is installed
    """

    update_batch: int = 512
    base_lr: float = 0.1
    base_batch: int = 64
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    label_smoothing: float = 0.0
    warmup_epochs: float = 0.0
    accumulation: int = 1
    micro_batch: int = 0
    recompute: bool = False
    backend: Literal["torch", "plain", "apex"] = "torch"

    def __post_init__(self) -> None:
        if self.update_batch < 1:
            raise ValueError(f"optim.update_batch is {self.update_batch}; it must be at least 1")
        if self.base_batch < 1:
            raise ValueError(f"optim.base_batch is {self.base_batch}; it must be at least 1")
        if self.base_lr <= 0:
            raise ValueError(f"optim.base_lr is {self.base_lr}; it must be positive")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"optim.momentum is {self.momentum}; it must lie in [0, 1)")
        if self.nesterov and self.momentum == 0:
            raise ValueError("optim.nesterov needs optim.momentum above 0")
        if self.weight_decay < 0:
            raise ValueError(f"optim.weight_decay is {self.weight_decay}; it must not be negative")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"optim.label_smoothing is {self.label_smoothing}; it must lie in [0, 1)")
        if self.warmup_epochs < 0:
            raise ValueError(f"optim.warmup_epochs is {self.warmup_epochs}; it must not be negative")
        if self.accumulation < 1 or self.update_batch % self.accumulation:
            raise ValueError(
                f"optim.accumulation is {self.accumulation}; it must be at least 1 and divide "
                f"optim.update_batch ({self.update_batch})"
            )

        if self.micro_batch < 0:
            raise ValueError(f"optim.micro_batch is {self.micro_batch}; it must be at least 1, or 0 for off")
        if self.micro_batch and self.accumulation > 1:
            raise ValueError(
                f"optim.micro_batch is {self.micro_batch} and optim.accumulation {self.accumulation}: both say how an "
                f"update batch is cut; leave one at its default"
            )

    def micro_batches(self, world_size: int) -> int:
        """Micro-batches that each of `world_size` ranks runs its share of an update batch in."""
        if not self.micro_batch:
            return self.accumulation
        share = self.update_batch // world_size
        fewest = -(-share // self.micro_batch)
        return next((n for n in range(max(1, fewest), share + 1) if share % n == 0), 1)

    @property
    def peak_lr(self) -> float:
        return self.base_lr * self.update_batch / self.base_batch


def cosine(iteration: int, total: int, warmup: int = 0) -> float:
    """Factor of the peak learning rate at `iteration`: 1/2 (1 + cos(pi t / T)), after a linear warm-up if any."""
    if iteration < warmup:
        return (iteration + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (iteration - warmup) / max(1, total - warmup)))


def build_sgd(
    parameters: Iterable[nn.Parameter], config: OptimConfig, rate_on_device: bool = False
) -> torch.optim.Optimizer:
    """SGD over the backbone; ValueError where apex is asked for and absent.

    rate_on_device  the learning rate is a device scalar that a replayed step reads anew
    """
    parameters = list(parameters)
    settings: dict[str, Any] = {
        "lr": _rate(config.peak_lr, parameters, rate_on_device),
        "momentum": config.momentum,
        "weight_decay": config.weight_decay,
        "nesterov": config.nesterov,
    }
    if config.backend == "apex":
        if rate_on_device:
            raise ValueError("optim.backend is apex, which asks the host, with precision.cuda_graphs; turn one off")
        if importlib.util.find_spec("amp_C") is None:
            raise ValueError(
                "optim.backend is apex, but NVIDIA's apex (its amp_C extension) is not installed; build it from "
                "NVIDIA's source with --cpp_ext --cuda_ext (the package named apex on the Python index is another "
                "project), or use optim.backend=torch"
            )
        from apex.optimizers import FusedSGD

        return _by_place(FusedSGD(parameters, **settings))
    if config.backend == "plain":
        if rate_on_device:
            raise ValueError("optim.backend is plain, which asks the host, with precision.cuda_graphs; turn one off")
        return torch.optim.SGD(parameters, **settings)
    # Fused, a step that must be left out is left out without asking the GPU for the reason.
    return _by_place(torch.optim.SGD(parameters, fused=True, **settings))


def _by_place(fused: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer, whose fused step pairs values by their place in memory: gradients come laid out as parameters."""
    fused.register_step_pre_hook(_lay_out_gradients)
    return fused


def _lay_out_gradients(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad = laid_out_as(parameter, parameter.grad)


def build_adam(
    parameters: Iterable[nn.Parameter], lr: float, weight_decay: float, rate_on_device: bool = False
) -> torch.optim.Optimizer:
    """Adam over the weight net; rate_on_device: as for `build_sgd`, its count of steps too."""
    parameters = list(parameters)
    if not rate_on_device:
        return torch.optim.Adam(parameters, lr=lr, weight_decay=weight_decay)
    on_gpu = all(parameter.is_cuda for parameter in parameters)
    adam = torch.optim.Adam(
        parameters, lr=_rate(lr, parameters, True), weight_decay=weight_decay, fused=True, capturable=on_gpu
    )
    adam._warned_capturable_if_run_uncaptured = True  # the first iterations are not recorded, as they should be
    return adam


def _rate(lr: float, parameters: list[nn.Parameter], on_device: bool) -> Tensor | float:
    return torch.tensor(lr, dtype=torch.float32, device=parameters[0].device) if on_device else lr


def start_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give every parameter the zero momentum that it begins with. A fused step that is left out must find one: it
    would leave the memory of a new one as it happened to be."""
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            optimizer.state[parameter].setdefault("momentum_buffer", torch.zeros_like(parameter))


def step_if(finite: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """A step where the device scalar is true, else nothing moves."""
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]  # torch's own protocol
        optimizer.step()
    elif finite.item():  # on a CPU there is nothing to wait for; with apex the device is waited for
        optimizer.step()


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr


def momentum_buffers(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> list[Tensor | None]:
    """The optimizer's momentum buffer of each parameter; None before its first step."""
    return [optimizer.state[p].get("momentum_buffer") if p in optimizer.state else None for p in parameters]
