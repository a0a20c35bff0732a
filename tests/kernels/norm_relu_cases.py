"""Cases of the fused batch-norm and ReLU; run as fused_cases.py is."""

from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels.backend import interpreting
from kernels.norm_relu import NormReLU, Running, columns, fused, norm_relu, norm_relu_jvp
from kernels.norm_relu.columns import Columns
from tests.kernels.exactness import (
    DEVICE,
    DTYPES,
    assert_at_most_twice_as_wrong,
    assert_every_entry_is_rounded_once,
    normal,
)

EPS = 1e-5
# torch itself scripts its decompositions when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")


def ordered(x: Tensor, channels_last: bool) -> Tensor:
    return x.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def parameters(C: int) -> tuple[Tensor, Tensor]:  # noqa: N803
    return 1 + 0.3 * normal(C, seed=1), 0.5 * normal(C, seed=2)


def everything(x: Tensor, dy: Tensor, t: Tensor, backend: str) -> dict[str, Tensor]:
    """All that the operation computes, at x's own dtype, or exactly where x is float64."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    C = x.shape[1]
    w, b = (p.to(wide).requires_grad_() for p in parameters(C))
    dw, db = normal(C, seed=3).to(wide), normal(C, seed=4).to(wide)
    mean, variance = normal(C, seed=5).to(wide), 1 + normal(C, seed=6).to(wide).square()
    running = Running(mean, variance, torch.tensor(7, device=DEVICE), 0.1)
    leaf, dy, t = x.clone().requires_grad_(), dy.to(x.dtype), t.to(x.dtype)
    out = norm_relu(leaf, w, b, EPS, running, backend)
    assert int(running.num_batches) == 8
    dx, d_weight, d_bias = torch.autograd.grad(out.y, (leaf, w, b), dy)
    along = norm_relu_jvp(x, t, out.mean, out.invstd, w.detach(), b.detach(), dw, db, backend)
    assert not out.mean.requires_grad
    return {
        "y": out.y.detach(), "mean": out.mean, "invstd": out.invstd, "running mean": mean, "running variance": variance,
        "dx": dx, "d weight": d_weight, "d bias": d_bias, "tangent": along,
    }  # fmt: skip


def check(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, far: float = 1.0) -> None:
    x, dy, t = (ordered(normal(*shape, seed=s), channels_last).to(dtype) for s in (11, 12, 13))
    x = (2 * x + far).to(dtype)
    exact = everything(x.double(), dy, t, "reference")
    ours, plain = everything(x, dy, t, "triton"), everything(x, dy, t, "reference")
    for name, value in exact.items():
        assert ours[name].dtype == plain[name].dtype
        assert_at_most_twice_as_wrong(ours[name], plain[name], value)
    assert ours["y"].stride() == ours["dx"].stride() == x.stride()
    if far == 1.0:
        w, b, m, s = (v.double()[:, None, None] for v in (*parameters(shape[1]), exact["mean"], exact["invstd"]))
        xhat, count = (x.double() - m) * s, x.numel() // shape[1]
        assert_every_entry_is_rounded_once(ours["y"], exact["y"], (w * xhat).abs() + b.abs() + m.abs() * s)
        sums = exact["d bias"].abs() + dy.double().abs().sum((0, 2, 3)) + xhat.abs().amax((0, 2, 3)) ** 2 * count
        assert_every_entry_is_rounded_once(
            ours["dx"], exact["dx"], (w * s).abs() * (dy.double().abs() + (sums / count)[:, None, None])
        )


SHAPES = [(2, 1, 1, 1), (2, 7, 3, 5), (3, 24, 4, 4), (2, 144, 2, 1)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_backward_and_tangent(shape, channels_last, dtype):
    check(shape, dtype, channels_last)


@pytest.mark.parametrize(("shape", "channels_last"), [((2, 2048, 1, 1), True), ((1, 515, 1, 2), False)], ids=str)
def test_many_channels(monkeypatch, shape, channels_last):
    if interpreting():
        monkeypatch.setattr(columns, "CHANNELS", 256)  # it takes as long for a few
    check(shape, torch.bfloat16, channels_last)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("programs", [7, 18])
def test_however_the_values_are_shared_out(monkeypatch, channels_last, programs):
    """Several shares, several tiles in each, a short last row, several blocks of columns and of partial sums."""
    for name, value in (("PROGRAMS", programs), ("TILE", 32), ("COLUMNS", 16), ("PARTS", 4)):
        monkeypatch.setattr(columns, name, value)
    shares, each = Columns.of(ordered(normal(5, 6, 4, 3), channels_last)).reduced()
    assert shares > 1 or each > 2
    check((5, 6, 4, 3), torch.float32, channels_last)


@settings(deadline=None, max_examples=8, derandomize=True)
@given(st.tuples(*(st.integers(1, top) for top in (4, 20, 5, 5))), st.booleans(), st.sampled_from(DTYPES))
def test_odd_shapes(shape, channels_last, dtype):
    if shape[0] * shape[2] * shape[3] > 1:
        check(shape, dtype, channels_last)


def test_moments_far_from_zero_do_not_cancel():
    check((6, 5, 6, 6), torch.float32, True, far=1000.0)
    check((6, 5, 6, 6), torch.float32, False, far=1000.0)


@pytest.mark.parametrize("channels_last", [True, False])
def test_a_gradient_that_is_a_slice_of_channels_is_read_where_it_is(channels_last):
    x = ordered(normal(3, 6, 4, 5), channels_last)
    wide = ordered(normal(3, 16, 4, 5, seed=1), channels_last)
    dy = wide[:, 5:11]
    read, stride = Columns.of(x).beside(dy)
    assert read.data_ptr() == dy.data_ptr()
    assert stride > Columns.of(x).period
    w, b = parameters(6)
    leaf = x.clone().requires_grad_()
    y = norm_relu(leaf, w, b, EPS, backend="triton").y
    (ours,) = torch.autograd.grad(y, leaf, dy, retain_graph=True)
    (dense,) = torch.autograd.grad(y, leaf, ordered(dy.contiguous(), channels_last))
    assert ours.equal(dense)
    turned = ordered(dy.contiguous(), not channels_last)  # neither order: copied
    assert Columns.of(x).beside(turned)[0].data_ptr() != turned.data_ptr()
    every = torch.ones((), device=DEVICE).expand(x.shape)  # the gradient of a sum
    assert Columns.of(x).beside(every)[0].equal(torch.ones_like(x))


def test_the_same_bits_every_time():
    x, w, b = ordered(normal(4, 8, 5, 5), True), *parameters(8)
    first, second = (norm_relu(x, w, b, EPS, backend="triton") for _ in range(2))
    assert all(one.equal(other) for one, other in zip(first, second, strict=True))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, of infinities
def test_nan_and_infinity_are_not_hidden():
    x = normal(2, 3, 2, 2)
    x[0, 1, 0, 0] = float("nan")
    x[1, 2, 1, 1] = float("inf")
    y = norm_relu(x, *parameters(3), EPS, backend="triton").y
    assert y[:, 0].isfinite().all()
    assert y[:, 1].isnan().all()
    assert y[:, 2].isnan().any()


def test_what_autograd_may_ask():
    """Dual tensors go by the tangent rule; a second derivative is torch's own; frozen parameters get none."""
    x, (w, b) = normal(3, 4, 3, 2), parameters(4)
    dw, db, t = normal(4, seed=3), normal(4, seed=4), normal(3, 4, 3, 2, seed=5)

    def both(*values: Tensor) -> list[NormReLU]:
        return [norm_relu(*values, EPS, backend=b) for b in ("triton", "reference")]

    with forward_ad.dual_level():
        dual = [forward_ad.make_dual(p, d) for p, d in ((x, t), (w, dw), (b, db))]
        ours, plain = (forward_ad.unpack_dual(out.y).tangent for out in both(*dual))
        torch.testing.assert_close(ours, plain)
        ours, plain = (forward_ad.unpack_dual(out.y).tangent for out in both(x, dual[1], b))
        torch.testing.assert_close(ours, plain)
    found = []
    for backend in ("triton", "reference"):
        leaves = [v.clone().requires_grad_() for v in (x, w, b)]
        y = norm_relu(*leaves, EPS, backend=backend).y
        grads = torch.autograd.grad((y * t).sum(), leaves, create_graph=True)
        found.append([*grads, *torch.autograd.grad(sum(g.square().sum() for g in grads), leaves)])
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)
    w.requires_grad_()
    for out in both(x, w, b):
        (grad,) = torch.autograd.grad(out.y.sum(), w)
        assert grad.shape == (4,)


def test_running_statistics_are_left_alone_where_none_are_given():
    assert norm_relu(normal(2, 3, 2, 2), *parameters(3), EPS, backend="triton").y.shape == (2, 3, 2, 2)


@triton.jit
def places(out, row, width, SIZE: tl.constexpr):  # noqa: N803
    index = tl.arange(0, SIZE)
    tl.store(out + index[:, None] * SIZE + index[None, :], fused.place(row + index, index, width))


def test_places_do_not_wrap_at_2_to_the_31():
    out = torch.zeros(2, 2, dtype=torch.int64, device=DEVICE)
    places[(1,)](out, 2**28, 240, 2)
    assert out.tolist() == [[2**28 * 240, 2**28 * 240 + 1], [2**28 * 240 + 240, 2**28 * 240 + 241]]
