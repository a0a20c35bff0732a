"""The reference of the exit losses against float64 formulas, argmax and finite checks of its derivatives."""

from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.exit_losses import exit_losses, exit_losses_jvp

# torch itself scripts its decompositions when forward mode is first used.
FORWARD_MODE = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")


def sample(n: int, K: int, C: int, dtype: torch.dtype = torch.float64) -> tuple[list[torch.Tensor], torch.Tensor]:  # noqa: N803
    random = torch.Generator().manual_seed(n * 1000 + K * 100 + C)
    logits = [(3 * torch.randn(n, C, generator=random, dtype=torch.float64)).to(dtype) for _ in range(K)]
    return logits, torch.randint(C, (n,), generator=random)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "K", "C"), [(1, 1, 2), (7, 5, 10), (3, 2, 1000), (2, 3, 21_841)])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_values_and_gradients_are_those_of_float64(n, K, C, dtype, smoothing):  # noqa: N803
    logits, labels = sample(n, K, C, dtype)
    ours = [z.clone().requires_grad_() for z in logits]
    exact = [z.double().requires_grad_() for z in logits]
    weights = torch.rand(n, K, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    out = exit_losses(ours, labels, smoothing)
    expected = torch.stack([F.cross_entropy(z, labels, reduction="none", label_smoothing=smoothing) for z in exact], 1)
    accumulator = torch.float64 if dtype == torch.float64 else torch.float32
    assert out.losses.dtype == out.confidences.dtype == accumulator
    close = 1e-13 if dtype == torch.float64 else 2e-6
    torch.testing.assert_close(out.losses.double(), expected, rtol=close, atol=close)
    confidences = torch.stack([torch.softmax(z, 1).amax(1) for z in exact], 1)
    torch.testing.assert_close(out.confidences.double(), confidences.detach(), rtol=close, atol=close)
    assert not out.confidences.requires_grad
    assert not out.top1.requires_grad

    grads = torch.autograd.grad(out.losses, ours, weights.to(accumulator))
    exact_grads = torch.autograd.grad(expected, exact, weights)
    for grad, exact_grad in zip(grads, exact_grads, strict=True):
        assert grad.dtype == dtype
        # In float32 torch sums the smoothed cotangents over all classes one after another: 4e-6 at 21,841 of them.
        rounding = max(close, torch.finfo(dtype).eps)
        torch.testing.assert_close(
            grad.double(), exact_grad, rtol=rounding, atol=1e-13 if dtype == torch.float64 else 1e-5
        )


@FORWARD_MODE
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_forward_mode_and_second_derivatives(smoothing):
    logits, labels = sample(3, 2, 4)
    logits = [z.requires_grad_() for z in logits]

    def losses(*z: torch.Tensor) -> torch.Tensor:
        return exit_losses(z, labels, smoothing).losses

    assert torch.autograd.gradcheck(losses, logits, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(losses, logits)
    tangents = [torch.randn_like(z) for z in logits]
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(z.detach(), t) for z, t in zip(logits, tangents, strict=True)]
        tangent = forward_ad.unpack_dual(losses(*duals)).tangent
    torch.testing.assert_close(exit_losses_jvp(logits, tangents, labels, smoothing), tangent, rtol=1e-12, atol=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_hits_follow_argmax_and_count_at_most_five(data):
    C, n = data.draw(st.integers(2, 12)), data.draw(st.integers(1, 6))
    # Few different values, so that ties are the rule; -inf is a class that was masked out.
    value = st.sampled_from([-float("inf"), -1.0, 0.0, 1.0])
    z = torch.tensor([[data.draw(value) for _ in range(C)] for _ in range(n)])
    labels = torch.tensor([data.draw(st.integers(0, C - 1)) for _ in range(n)])
    out = exit_losses([z], labels)
    first_five = torch.argsort(z, dim=1, descending=True, stable=True)[:, :5]
    assert out.top1[:, 0].equal(z.argmax(1) == labels)
    assert out.top5[:, 0].equal((first_five == labels[:, None]).any(1))


def test_nan_is_never_a_hit_and_masked_classes_do_not_spoil_the_rest():
    z = torch.tensor([[float("nan")] * 6, [0.0, float("nan"), 0, 0, 0, 0], [2.0, -float("inf"), 1, 0, 0, 0]])
    out = exit_losses([z], torch.tensor([0, 0, 0]))
    assert out.top1[:, 0].tolist() == [False, False, True]
    assert out.losses[:, 0].isnan().tolist() == [True, True, False]


@pytest.mark.parametrize(
    ("logits", "labels", "smoothing", "message"),
    [
        ([], torch.zeros(2, dtype=torch.int64), 0.0, "one tensor"),
        ([torch.zeros(2, 3), torch.zeros(2, 4)], torch.zeros(2, dtype=torch.int64), 0.0, "one shape and dtype"),
        ([torch.zeros(2, 3, dtype=torch.int64)], torch.zeros(2, dtype=torch.int64), 0.0, "floating dtype"),
        ([torch.zeros(2, 3)], torch.zeros(2, dtype=torch.int32), 0.0, r"int64 \[2\]"),
        ([torch.zeros(2, 3)], torch.zeros(3, dtype=torch.int64), 0.0, r"int64 \[2\]"),
        ([torch.zeros(2, 3)], torch.zeros(2, dtype=torch.int64), 1.0, r"\[0, 1\)"),
    ],
)
def test_refuses_what_does_not_fit(logits, labels, smoothing, message):
    with pytest.raises(ValueError, match=message):
        exit_losses(logits, labels, smoothing)


def test_tangents_must_match_the_logits():
    with pytest.raises(ValueError, match="one tangent per logit"):
        exit_losses_jvp([torch.zeros(2, 3)], [torch.zeros(2, 4)], torch.zeros(2, dtype=torch.int64))
