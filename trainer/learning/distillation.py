"""One-for-all distillation: exits 1..K-1 learn from the phase-1 net's last exit too (METHOD: IMTA, phase 2).

loss_ik = (1 - gamma) * cross-entropy_ik + gamma * T^2 * KL(softmax(teacher_i / T) || softmax(logits_ik / T)) / C;
the last exit's is its cross-entropy. KL is KL(teacher || exit), as torch's kl_div and the authors' program take it,
averaged over batch and classes: hence the C.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class DistillationConfig:
    """Group `distillation`, of the recipes ...-imta-finetune.

    gamma        share of the distillation in an exit's loss, the rest is cross-entropy
    temperature  T that softens both distributions
    """

    gamma: float = 0.1
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"distillation.gamma is {self.gamma}; it is a share, 0 to 1")
        if not 0.01 <= self.temperature <= 100:
            raise ValueError(f"distillation.temperature is {self.temperature}; it must lie in [0.01, 100]")


def distilled(losses: Tensor, logits: Sequence[Tensor], teacher: Tensor, config: DistillationConfig) -> Tensor:
    """losses [n, K] (cross-entropies) with the distillation of exits 1..K-1; logits K tensors [n, C], teacher [n, C].

    Differentiable in the logits, in reverse and in forward mode; the teacher is taken as a constant.
    """
    T = config.temperature
    log_p = torch.log_softmax(teacher.detach().to(losses.dtype) / T, dim=1)
    columns = []
    for k, z in enumerate(logits[:-1]):
        log_q = torch.log_softmax(z.to(losses.dtype) / T, dim=1)
        divergence = (log_p.exp() * (log_p - log_q)).mean(dim=1)
        columns.append((1 - config.gamma) * losses[:, k] + config.gamma * T * T * divergence)
    return torch.stack([*columns, losses[:, -1]], dim=1)


def distilled_jvp(
    slopes: Tensor, logits: Sequence[Tensor], tangents: Sequence[Tensor], teacher: Tensor, config: DistillationConfig
) -> Tensor:
    """[n, K] derivative of `distilled` along the logits' tangents; slopes [n, K] that of the cross-entropies."""
    T = config.temperature
    p = torch.softmax(teacher.to(slopes.dtype) / T, dim=1)
    columns = []
    for k, (z, dz) in enumerate(zip(logits[:-1], tangents[:-1], strict=True)):
        q = torch.softmax(z.to(slopes.dtype) / T, dim=1)
        divergence = ((q - p) * dz.to(slopes.dtype)).mean(dim=1) / T
        columns.append((1 - config.gamma) * slopes[:, k] + config.gamma * T * T * divergence)
    return torch.stack([*columns, slopes[:, -1]], dim=1)
