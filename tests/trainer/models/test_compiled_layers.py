"""Layers as torch.compile gets them on a CPU compute what the eager ones do."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from trainer.models.blocks import ConvNormReLU, ImageNetStem
from trainer.models.compiled_layers import norm_relu

ACCURACY = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 1e-2}


def _compiled(layer: nn.Module) -> Callable[[Tensor], Tensor]:
    """Traced as for any compiler, run without one: what is tested are the operations, not the compiler."""
    torch._dynamo.reset()
    return torch.compile(layer, backend="aot_eager", fullgraph=True)


def _moments_set(layer: nn.Module) -> nn.Module:
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias)
    return layer


def _far(a: Tensor, b: Tensor) -> float:
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / a.norm().clamp_min(1e-30))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel", "stride", "size"),
    [
        (16, 32, 1, 1, 9),
        (6, 10, 3, 2, 7),
        (6, 10, 3, 2, 4),
        (6, 8, 3, 1, 4),
        (6, 8, 3, 1, 9),
        (6, 8, 1, 2, 5),
        (3, 1, 3, 2, 8),
    ],
)
def test_a_layer_is_the_eager_one(
    inputs: int, outputs: int, kernel: int, stride: int, size: int, channels_last: bool, dtype: torch.dtype
) -> None:
    """Output, gradients of everything and running statistics; few pixels, pointwise kernels and neither."""
    torch.manual_seed(0)
    form = torch.channels_last if channels_last else torch.contiguous_format
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    eager = _moments_set(ConvNormReLU(inputs, outputs, kernel, stride)).to(wide).to(memory_format=form)
    traced = copy.deepcopy(eager)
    layer = _compiled(traced)
    images = torch.randn(4, inputs, size, size, dtype=wide).to(memory_format=form)
    both = [images.clone().requires_grad_() for _ in range(2)]
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        want, got = eager(both[0]), layer(both[1])
    assert got.dtype == want.dtype
    cotangent = torch.randn(want.shape, dtype=want.dtype)
    want.backward(cotangent)
    got.backward(cotangent)
    named = dict(traced.named_parameters())
    pairs = [(want, got), (both[0].grad, both[1].grad)]
    pairs += [(p.grad, named[name].grad) for name, p in eager.named_parameters()]
    pairs += list(zip(eager.buffers(), traced.buffers(), strict=True))
    for left, right in pairs:
        assert left is not None
        assert right is not None
        assert _far(left, right) < ACCURACY[dtype]


def test_the_stem_is_the_eager_one() -> None:
    torch.manual_seed(0)
    eager = _moments_set(ImageNetStem(8)).double().to(memory_format=torch.channels_last)
    traced = copy.deepcopy(eager)
    images = torch.randn(2, 3, 30, 34, dtype=torch.float64).to(memory_format=torch.channels_last)
    want, got = eager(images), _compiled(traced)(images)
    assert _far(want, got) < 1e-12
    cotangent = torch.randn_like(want)
    want.backward(cotangent)
    got.backward(cotangent)
    grads = {name: p.grad for name, p in traced.named_parameters()}
    for name, parameter in eager.named_parameters():
        assert parameter.grad is not None
        if name != "conv.bias":  # before a batch-norm: no more than rounding
            assert _far(parameter.grad, grads[name]) < 1e-10


def test_moments_far_from_zero_do_not_cancel() -> None:
    """Values a thousand deviations from zero: the variance is right to four digits in float32."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    images = 1000.0 + torch.randn(8, 3, 16, 16)
    got = _compiled(_NormReLU(norm))(images)
    exact = nn.BatchNorm2d(3).double()(images.double()).relu()
    assert _far(exact, got) < 1e-3


def test_evaluation_uses_the_running_statistics() -> None:
    norm = nn.BatchNorm2d(3).eval()
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(_compiled(_NormReLU(norm))(images), norm(images).relu())


class _NormReLU(nn.Module):
    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.norm, self.relu = norm, nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return norm_relu(self.norm, self.relu, x)
