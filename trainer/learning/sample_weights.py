"""How much each sample counts at each exit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from trainer.learning.collectives import sum_over_ranks, world_size
from trainer.models.weight_net import WeightNet

Centre = Literal["row", "col", "mat"]


@dataclass(frozen=True)
class SampleWeightsConfig:
    """Group `sample_weights` (METHOD: weights).

    enabled  False is the unweighted baseline: the same loop with every weight 1 and no meta update
    epsilon  size of the perturbation (the paper's delta)
    centre   what the perturbations average to zero over: row (samples, per exit), col (exits, per sample) or mat (all)
    """

    enabled: bool = True
    epsilon: float = 0.3
    centre: Centre = "mat"

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1:
            raise ValueError(f"sample_weights.epsilon is {self.epsilon}; it must lie in (0, 1]")


def centred(values: Tensor, centre: Centre) -> Tensor:
    """values [n, K] less their mean over all ranks' samples (row), over exits (col) or over both (mat).

    A linear, self-adjoint projection: it serves the weights and, in the other direction, their cotangents.
    """
    if centre == "col":
        return values - values.mean(dim=1, keepdim=True)
    sums = values.sum(dim=0, keepdim=True)
    count = len(values) * world_size()
    (sums,) = sum_over_ranks([sums])
    if centre == "mat":
        sums, count = sums.sum(dim=1, keepdim=True), count * values.shape[1]
    return values - sums / count


@dataclass(frozen=True)
class SampleWeights:
    """Weights of one half on this rank, and the way back to the weight net.

    values  [n, K], no gradient
    raw     [n, K] the weight net's output, with its graph where gradients are on
    """

    values: Tensor
    raw: Tensor
    config: SampleWeightsConfig

    def backward(self, cotangent: Tensor) -> None:
        """Add to the weight net's .grad what a gradient `cotangent` [n, K] with respect to `values` sends back."""
        self.raw.backward(self.config.epsilon * centred(cotangent, self.config.centre))


def weigh(weight_net: WeightNet, losses: Tensor, confidences: Tensor, config: SampleWeightsConfig) -> SampleWeights:
    """w = 1 + epsilon * (u - mean u) with u = weight_net(losses) (losses, confidences [n, K], detached)."""
    raw = weight_net(losses.detach(), confidences.detach())
    with torch.no_grad():
        values = 1.0 + config.epsilon * centred(raw, config.centre)
    return SampleWeights(values, raw, config)
