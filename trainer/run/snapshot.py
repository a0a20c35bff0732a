"""A training state as flat tensors and plain values, and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from trainer.learning.state import TrainState


def take(state: TrainState) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors by dotted name, JSON values) that `restore` turns back into the same state, bit for bit."""
    tensors = {f"model.{name}": value for name, value in state.network.module.state_dict().items()}
    tensors |= _optimizer_tensors("optimizer", state.optimizer, state.network.module)
    if state.weight_net is not None and state.weight_net_optimizer is not None:
        tensors |= {f"weight_net.{name}": value for name, value in state.weight_net.state_dict().items()}
        tensors |= _optimizer_tensors("weight_net_optimizer", state.weight_net_optimizer, state.weight_net)
    tensors["generator.cpu"] = torch.get_rng_state()
    if state.network.precision.device.type == "cuda":
        tensors["generator.cuda"] = torch.cuda.get_rng_state(state.network.precision.device)
    values = {
        "iteration": state.progress.iteration,
        "total_iterations": state.progress.total,
        "loss_scaler": state.scaler.state_dict(),
    }
    return tensors, values


def is_finite(state: TrainState) -> bool:
    """Whether every weight and running statistic is a finite number. Waits for the device, once."""
    held = [*state.network.module.state_dict().values()]
    held += state.weight_net.state_dict().values() if state.weight_net is not None else []
    norms = torch._foreach_norm([value for value in held if value.is_floating_point()])
    return bool(torch.stack(norms).isfinite().all())


def restore(state: TrainState, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Set `state` to what `take` gave; ValueError naming the first tensor that does not fit."""
    _load_module("model", state.network.module, tensors)
    _load_optimizer("optimizer", state.optimizer, state.network.module, tensors)
    if state.weight_net is not None and state.weight_net_optimizer is not None:
        _load_module("weight_net", state.weight_net, tensors)
        _load_optimizer("weight_net_optimizer", state.weight_net_optimizer, state.weight_net, tensors)
    elif any(name.startswith("weight_net.") for name in tensors):
        raise ValueError(
            "the checkpoint has a weight net and sample_weights.enabled is false: it belongs to another run; give "
            "--run another folder"
        )
    if "generator.cpu" in tensors:
        torch.set_rng_state(tensors["generator.cpu"].cpu())
    device = state.network.precision.device
    if device.type == "cuda" and "generator.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["generator.cuda"].cpu(), device)
    if state.scaler.is_enabled() and values.get("loss_scaler"):
        state.scaler.load_state_dict(values["loss_scaler"])
    if type(values["iteration"]) is not int or values["iteration"] < 0:
        raise ValueError(f"the checkpoint says that it is of iteration {values['iteration']!r}; restore another one")
    state.progress.iteration = values["iteration"]
    state.set_learning_rates()


def load_model(model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """The backbone alone, for evaluation; ValueError naming the first tensor that does not fit."""
    _load_module("model", model, tensors)


def _load_module(prefix: str, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    expected = module.state_dict()
    for name, own in expected.items():
        full = f"{prefix}.{name}"
        if full not in tensors:
            raise ValueError(
                f"the checkpoint has no tensor {full}: it belongs to another net; give --run another folder"
            )
        if tensors[full].dtype.is_floating_point != own.dtype.is_floating_point:
            raise ValueError(f"the checkpoint's {full} is {tensors[full].dtype}, the net's {own.dtype}")
        if tensors[full].shape != own.shape:
            raise ValueError(
                f"the checkpoint's {full} has shape {tuple(tensors[full].shape)}, the net's {tuple(own.shape)}: it "
                f"belongs to another net; give --run another folder"
            )
    held = [name for name in tensors if name.startswith(f"{prefix}.")]
    extra = sorted(set(held) - {f"{prefix}.{name}" for name in expected})
    if extra:
        raise ValueError(f"the checkpoint's {extra[0]} has no place in the net: it belongs to another net")
    module.load_state_dict({name: tensors[f"{prefix}.{name}"] for name in expected})


def _optimizer_tensors(prefix: str, optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Tensor]:
    return {
        f"{prefix}.{key}.{name}": value
        for name, parameter in module.named_parameters()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def _load_optimizer(
    prefix: str, optimizer: torch.optim.Optimizer, module: nn.Module, tensors: dict[str, Tensor]
) -> None:
    parameters = dict(module.named_parameters())
    known = {"step", "exp_avg", "exp_avg_sq"} if isinstance(optimizer, torch.optim.Adam) else {"momentum_buffer"}
    optimizer.state.clear()
    for full, value in tensors.items():
        if not full.startswith(f"{prefix}."):
            continue
        key, name = full.removeprefix(f"{prefix}.").split(".", 1)
        if name not in parameters:
            raise ValueError(f"the checkpoint's {full} has no place in the net: it belongs to another net")
        parameter = parameters[name]
        shape = () if key == "step" else parameter.shape
        if key not in known or value.shape != shape or not value.dtype.is_floating_point:
            raise ValueError(f"the checkpoint's {full} is nothing that {type(optimizer).__name__} keeps")
        # What is as large as the parameter lies beside it, in its memory layout. Adam counts its steps on the CPU, and
        # fused Adam beside the parameter too.
        like: Tensor = parameter
        if key == "step":
            like = value.to(parameter.device if optimizer.param_groups[0].get("fused") else "cpu")
        optimizer.state[parameter][key] = torch.empty_like(like).detach().copy_(value)
    if optimizer.state:  # training writes none of it, or all
        named = {parameter: name for name, parameter in parameters.items()}
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            missing = sorted(known - set(optimizer.state.get(parameter, {})))
            if missing:
                raise ValueError(
                    f"the checkpoint lacks {prefix}.{missing[0]}.{named[parameter]}: it is no state that training wrote"
                )
