"""The weight net: from a sample's K losses to its K raw weights."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class WeightNetConfig:
    """depth hidden layers of `width` units; inputs: the losses, the confidences, or both (2K numbers)."""

    depth: int = 1
    width: int = 500
    inputs: Literal["losses", "confidences", "both"] = "losses"

    def __post_init__(self) -> None:
        for name, most in (("depth", 100), ("width", 65_536)):
            if getattr(self, name) > most:
                raise ValueError(f"weight_net.{name} is {getattr(self, name)}; it must be at most {most}")
        for name in ("depth", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"weight_net.{name} is {getattr(self, name)}; it must be at least 1")


class WeightNet(nn.Module):
    """MLP with ReLU between its layers and tanh at its end. Source: METHOD.md section 2."""

    def __init__(self, config: WeightNetConfig, num_exits: int) -> None:
        super().__init__()
        self.inputs = config.inputs
        widths = [num_exits * (2 if config.inputs == "both" else 1), *[config.width] * config.depth]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.output = nn.Linear(config.width, num_exits)

    def forward(self, losses: Tensor, confidences: Tensor) -> Tensor:
        """Losses, confidences [n, K] -> u [n, K] in (-1, 1), in the parameters' type (float32) also under autocast."""
        if self.inputs == "both":
            x = torch.cat([losses, confidences], dim=1)
        else:
            x = losses if self.inputs == "losses" else confidences
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.output.weight.dtype)
            for layer in self.hidden:
                x = torch.relu(layer(x))
            return torch.tanh(self.output(x))
