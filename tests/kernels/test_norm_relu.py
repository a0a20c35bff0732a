"""The reference is batch-norm and ReLU as torch's modules compute them, to the bit; its tangent rule is exact."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import nn

from kernels.norm_relu import Running, norm_relu, norm_relu_jvp


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [True, False])
def test_is_what_the_modules_do(channels_last, dtype):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(6, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    nn.init.normal_(norm.weight)
    other = copy.deepcopy(norm)
    x = torch.randn(4, 6, 5, 3).to(dtype)
    x = x.to(memory_format=torch.channels_last) if channels_last else x
    one, two = (x.clone().requires_grad_() for _ in range(2))
    running = Running(other.running_mean, other.running_var, other.num_batches_tracked, other.momentum)
    for _ in range(2):
        want, got = norm(one).relu(), norm_relu(two, other.weight, other.bias, other.eps, running).y
        assert got.equal(want)
        want.sum().backward()
        got.sum().backward()
    pairs = [(one.grad, two.grad), *zip(norm.state_dict().values(), other.state_dict().values(), strict=True)]
    pairs += [(p.grad, q.grad) for p, q in zip(norm.parameters(), other.parameters(), strict=True)]
    assert all(a.equal(b) for a, b in pairs)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
def test_the_tangent_rule_is_forward_mode():
    torch.manual_seed(0)
    values = [torch.randn(shape, dtype=torch.float64) for shape in ((3, 4, 2, 3), (4,), (4,))]
    tangents = [torch.randn_like(v) for v in values]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(v, t) for v, t in zip(values, tangents, strict=True)]
        want = forward_ad.unpack_dual(norm_relu(*duals, 1e-5).y).tangent
    out = norm_relu(*values, 1e-5)
    got = norm_relu_jvp(values[0], tangents[0], out.mean, out.invstd, *values[1:], *tangents[1:])
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("shape", "channels", "message"),
    [((2, 3, 4), 3, r"\[N, C, H, W\]"), ((2, 3, 4, 4), 2, r"give \[3\]"), ((1, 3, 1, 1), 3, "at least 2")],
)
def test_refuses_what_does_not_fit(shape, channels, message):
    with pytest.raises(ValueError, match=message):
        norm_relu(torch.zeros(shape), torch.ones(channels), torch.zeros(channels), 1e-5)


def test_refuses_a_tangent_of_another_shape():
    x, c = torch.zeros(2, 3, 2, 2), torch.ones(3)
    with pytest.raises(ValueError, match="give one each"):
        norm_relu_jvp(x, x[:1], c, c, c, c, c, c)
