"""A net whose batch-norms and ReLUs run as one kernel, against torch's own; run by test_norm_relu.py in a process of
its own, since TRITON_INTERPRET is read once, when a kernel's module is imported."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dataloading.batch import Batch
from kernels.backend import asked
from kernels.norm_relu import columns, fused
from trainer.config import Config
from trainer.learning.forward import HalfForward
from trainer.learning.iteration import run_iteration
from trainer.learning.meta_gradient import MetaConfig
from trainer.learning.optim import OptimConfig
from trainer.learning.precision import PrecisionConfig
from trainer.learning.state import Progress, TrainState
from trainer.models.blocks import ConvNormReLU
from trainer.models.config import ModelConfig
from trainer.models.weight_net import WeightNetConfig
from trainer.run.build import build_state
from trainer.run.distributed import Ranks

N = 4
# torch itself scripts its decompositions when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")


@pytest.fixture(autouse=True)
def few_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "TILE", 16_384)  # the interpreter takes as long for a few values
    monkeypatch.setattr(columns, "PROGRAMS", 2)
    monkeypatch.setattr(columns, "CHANNELS", 32)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the kernels that ran."""
    names: list[str] = []
    plain = fused.launch

    def noted(kernel: object, *arguments: object, **constants: object) -> None:
        names.append(kernel.fn.__name__)  # type: ignore[attr-defined]
        plain(kernel, *arguments, **constants)  # type: ignore[arg-type]

    monkeypatch.setattr(fused, "launch", noted)
    return names


def choose(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    monkeypatch.setenv("EARLYBIRD_KERNELS", f"norm_relu={backend}")
    asked.cache_clear()


def state_of(form: str = "exact", recompute: bool = False) -> TrainState:
    model = ModelConfig(
        num_exits=2,
        first_channels=4,
        growth=3,
        growth_factors=(1, 1),
        bottleneck_factors=(1, 1),
        classifier_channels=5,
    )
    config = Config(
        recipe="test",
        model=model,
        optim=OptimConfig(N, base_batch=N, recompute=recompute),
        weight_net=WeightNetConfig(width=4),
        meta=MetaConfig(form=form),  # type: ignore[arg-type]
        precision=PrecisionConfig(dtype="float32", channels_last="on"),
    )
    return build_state(config, 5, Progress(0, 100), Ranks(0, 1, 0, 1, torch.device("cpu")))


def half_of(num: int = N) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(num, 3, 16, 16, generator=generator).to(memory_format=torch.channels_last)
    return Batch(images, torch.randint(0, 5, (num,), generator=generator), np.arange(num))


def close(found: list[Tensor], expected: list[Tensor]) -> None:
    for ours, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=2e-3, atol=2e-4)


def test_a_half_and_every_derivative_of_it(monkeypatch: pytest.MonkeyPatch, launches: list[str]) -> None:
    """Losses, gradient, tangents replayed and by dual tensors, .grad and running statistics."""
    results = []
    for backend in ("reference", "triton"):
        choose(monkeypatch, backend)
        state, cotangent = state_of(), torch.linspace(0.5, 1.5, 2 * N).view(N, 2)
        torch.manual_seed(0)
        direction = [0.1 * torch.randn_like(p) for p in state.network.parameters.values()]
        recorded, plain = (HalfForward(state.network, half_of(), record=record) for record in (True, False))
        gradient = recorded.gradient(cotangent)
        slopes = [recorded.linearised().along(direction)]
        if backend == "triton":
            norms = sum(isinstance(m, ConvNormReLU) for m in state.network.module.modules())
            assert norms > 8
            for kernel, passes in (("norm_relu_kernel", 2), ("norm_relu_backward", 1), ("norm_relu_tangent", 1)):
                assert launches.count(kernel) == passes * norms
        state.network.__dict__["tangents"] = "dual"
        slopes.append(plain.linearised().along(direction))
        torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-3, atol=1e-5)
        recorded.backward(cotangent, state.scaler.scale)
        moved = [b for b in state.network.module.buffers() if b.is_floating_point()]
        grads = [p.grad for p in state.network.parameters.values()]
        results.append([recorded.values.losses, *gradient, *slopes, *grads, *moved])
        inner = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
        torch.testing.assert_close((slopes[0] * cotangent).sum(), inner, rtol=1e-4, atol=1e-4)
    close(results[1], results[0])  # type: ignore[arg-type]


@pytest.mark.parametrize(("form", "recompute"), [("double_backward", False), ("exact", True)])
def test_an_iteration(monkeypatch: pytest.MonkeyPatch, launches: list[str], form: str, recompute: bool) -> None:
    """Both halves with their meta steps: the whole state moves as with torch's own operations."""
    results = []
    for backend in ("reference", "triton"):
        choose(monkeypatch, backend)
        torch.manual_seed(0)
        state = state_of(form, recompute)
        run_iteration(state, half_of(2 * N))
        held = [*state.network.module.state_dict().values(), *state.weight_net.state_dict().values()]
        results.append(held)
    assert "norm_relu_backward" in launches
    close(results[1], results[0])


def test_who_keeps_the_modules_own_passes(monkeypatch: pytest.MonkeyPatch, launches: list[str]) -> None:
    """Evaluation, hooks, another norm, running statistics without a momentum, a single value, shapes alone."""
    choose(monkeypatch, "triton")
    x = torch.randn(2, 3, 4, 4)
    unit = ConvNormReLU(3, 4, kernel=3)
    unit.eval()(x)
    unit.train()
    handle = unit.relu.register_forward_hook(lambda *_: None)
    unit(x)
    handle.remove()
    unit.norm.momentum = None
    unit(x)
    unit.norm = nn.Identity()
    unit(x)
    ConvNormReLU(3, 4, kernel=3).to("meta")(x.to("meta"))
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        ConvNormReLU(3, 4, kernel=1)(x[:1, :, :1, :1])
    torch.compile(ConvNormReLU(3, 4, kernel=3), backend="eager", fullgraph=True)(x)
    assert launches == []
    ConvNormReLU(3, 4, kernel=3)(x)
    assert launches == ["moments_kernel", "statistics_kernel", "norm_relu_kernel"]
