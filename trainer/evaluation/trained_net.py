"""The net of a run folder, for inference."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from trainer.config import Config
from trainer.models.build import build_model
from trainer.models.multi_exit import MultiExitNet
from trainer.run.checkpoint import load_latest
from trainer.run.folder import RunFolder
from trainer.run.snapshot import load_model


@dataclass(frozen=True)
class TrainedNet:
    """The newest whole checkpoint's net, in evaluation mode, with what its answers mean.

    net      on the device, NCHW, float32 (float64 where it was trained so)
    classes  names, in the order of the net's classes
    """

    config: Config
    net: MultiExitNet
    classes: tuple[str, ...]
    iteration: int


def read_trained_net(run: Path, device: torch.device) -> TrainedNet:
    """ValueError where `run` is no run folder, or holds no checkpoint yet."""
    config = RunFolder(run).read_config()
    checkpoint = load_latest(run)
    if checkpoint is None:
        raise ValueError(f"{run} has no checkpoint yet; train it first")
    classes = checkpoint.meta.get("classes")
    if not isinstance(classes, list) or not classes:
        raise ValueError(f"{checkpoint.folder} does not say which classes its net knows; restore another checkpoint")
    net = build_model(config.model, len(classes))
    dtype = torch.float64 if config.precision.dtype == "float64" else torch.float32
    net = net.to(device, dtype).eval().requires_grad_(False)
    load_model(net, checkpoint.tensors)
    return TrainedNet(config, net, tuple(str(name) for name in classes), checkpoint.iteration)
