"""One-for-all distillation against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from trainer.learning.distillation import DistillationConfig, distilled, distilled_jvp


def test_values_by_hand() -> None:
    """Two classes, two exits. softmax(0, ln 3) = (1/4, 3/4); the teacher says (1/2, 1/2); T = 1, gamma = 0.1.

    KL = 1/2 ln((1/2) / (1/4)) + 1/2 ln((1/2) / (3/4)) = 1/2 ln(4/3), over 2 classes 1/4 ln(4/3).
    """
    logits = [torch.tensor([[0.0, math.log(3)]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)]
    teacher = torch.zeros(1, 2, dtype=torch.float64)
    losses = torch.tensor([[math.log(4), math.log(2)]], dtype=torch.float64)  # cross-entropies of class 0
    found = distilled(losses, logits, teacher, DistillationConfig(gamma=0.1, temperature=1.0))
    expected = torch.tensor([[0.9 * math.log(4) + 0.1 * math.log(4 / 3) / 4, math.log(2)]], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)


def test_temperature_by_hand() -> None:
    """T = 2 over logits (0, 2 ln 3): softened the same (1/4, 3/4); T^2 = 4 takes the softening back."""
    logits = [torch.tensor([[0.0, 2 * math.log(3)]], dtype=torch.float64), torch.zeros(1, 2, dtype=torch.float64)]
    losses = torch.tensor([[math.log(10), math.log(2)]], dtype=torch.float64)
    found = distilled(losses, logits, torch.zeros(1, 2, dtype=torch.float64), DistillationConfig(0.5, 2.0))
    expected = 0.5 * math.log(10) + 0.5 * 4 * math.log(4 / 3) / 4
    torch.testing.assert_close(found[0, 0].item(), expected, rtol=1e-12, atol=0.0)


def test_batch_mean_is_torchs_mean_over_every_element() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(6, 4, generator=generator, dtype=torch.float64) for _ in range(3)]
    teacher, T = torch.randn(6, 4, generator=generator, dtype=torch.float64), 3.0
    found = distilled(torch.zeros(6, 3, dtype=torch.float64), logits, teacher, DistillationConfig(1.0, T))
    for k, z in enumerate(logits[:-1]):
        log_q, p = torch.log_softmax(z / T, dim=1), torch.softmax(teacher / T, dim=1)
        divergence = (p * (p.log() - log_q)).sum() / p.numel()
        torch.testing.assert_close(found[:, k].mean(), T * T * divergence)
    assert not found[:, -1].any()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # torch's own, on first use
def test_derivative_along_tangents() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, tangents = (
        [torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(3)] for _ in range(2)
    )
    teacher, config = torch.randn(5, 4, generator=generator, dtype=torch.float64), DistillationConfig(0.3, 2.0)
    losses, slopes = torch.randn(2, 5, 3, generator=generator, dtype=torch.float64)

    def run(losses: torch.Tensor, *logits: torch.Tensor) -> torch.Tensor:
        return distilled(losses, logits, teacher, config)

    _, expected = torch.func.jvp(run, (losses, *logits), (slopes, *tangents))
    torch.testing.assert_close(distilled_jvp(slopes, logits, tangents, teacher, config), expected)


@pytest.mark.parametrize(("name", "value"), [("gamma", 1.5), ("gamma", -0.1), ("temperature", 0.0)])
def test_refusals(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"distillation.{name}"):
        DistillationConfig(**{name: value})
