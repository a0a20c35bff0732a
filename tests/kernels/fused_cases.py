"""Cases of the fused kernels: under Triton's interpreter on the CPU, or on a GPU. Run by test_fused.py in a process of
its own, since TRITON_INTERPRET is read once, when a kernel's module is imported."""

from __future__ import annotations

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor

from kernels.backend import interpreting
from kernels.exit_losses import exit_losses, exit_losses_jvp, reference
from kernels.exit_routing import quotas, route
from kernels.lookahead import fused, lookahead
from kernels.normalize import normalize
from tests.kernels.exactness import (
    DEVICE,
    DTYPES,
    assert_at_most_twice_as_wrong,
    assert_every_entry_is_rounded_once,
    normal,
)

# torch itself scripts its decompositions when forward mode is first used.
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")


SHAPES = [(n, K, C, s, d) for n, K, C in ((1, 1, 2), (3, 5, 10), (2, 2, 1000)) for s in (0.0, 0.1) for d in DTYPES]
# Both sides of a block of classes and of a warp's rows, the widest head in use, the largest batch.
SHAPES += [(2, 1, C, 0.1, d) for C in (4096, 4097, 21_841) for d in DTYPES]
SHAPES += [(1, 2, 21_841, 0.0, torch.bfloat16), (129, 1, 10, 0.1, torch.float16)]
SHAPES += [] if interpreting() else [(4096, 5, 1000, 0.1, d) for d in DTYPES]  # where a row does not take 3 ms


@pytest.mark.parametrize(("n", "K", "C", "smoothing", "dtype"), SHAPES)
def test_exit_losses_forward_backward_and_tangent(n, K, C, smoothing, dtype):  # noqa: N803
    rise = torch.linspace(0, 20, C, device=DEVICE)  # later blocks hold the larger logits: what came before is rescaled
    logits = [(4 * normal(n, C, seed=k) + rise).to(dtype) for k in range(K)]
    tangents = [normal(n, C, seed=50 + k).to(dtype) for k in range(K)]
    labels = torch.randint(C, (n,), generator=torch.Generator().manual_seed(C)).to(DEVICE)
    cotangent = normal(n, K, seed=99)
    ways = {"triton": logits, "reference": logits, "exact": [z.double() for z in logits]}
    losses, grads, along, rest = {}, {}, {}, {}
    for way, z in ways.items():
        backend = "reference" if way == "exact" else way
        leaves = [t.clone().requires_grad_() for t in z]
        out = exit_losses(leaves, labels, smoothing, backend)
        losses[way], rest[way] = out.losses.detach(), out
        grads[way] = torch.cat(torch.autograd.grad(out.losses, leaves, cotangent.to(out.losses.dtype)))
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(t, d.to(t.dtype)) for t, d in zip(z, tangents, strict=True)]
            along[way] = forward_ad.unpack_dual(exit_losses(duals, labels, smoothing, backend).losses).tangent
    for values in (losses, grads, along, {way: out.confidences for way, out in rest.items()}):
        assert_at_most_twice_as_wrong(values["triton"], values["reference"], values["exact"])
    softmax = torch.cat([torch.softmax(z.double(), 1) for z in logits])
    target = (1 - smoothing) * torch.nn.functional.one_hot(labels, C).repeat(K, 1) + smoothing / C
    assert_every_entry_is_rounded_once(
        grads["triton"], grads["exact"], cotangent.T.reshape(-1, 1).abs().double() * (softmax + target)
    )
    assert grads["triton"].dtype == dtype
    assert losses["triton"].dtype == rest["triton"].confidences.dtype == torch.float32
    assert rest["triton"].top1.equal(rest["reference"].top1)
    assert rest["triton"].top5.equal(rest["reference"].top5)
    assert not rest["triton"].confidences.requires_grad
    standalone = exit_losses_jvp(logits, tangents, labels, smoothing, "triton")
    assert standalone.equal(along["triton"])


def test_exit_losses_of_the_largest_batch():
    z, labels = 4 * normal(4096, 2), torch.arange(4096, device=DEVICE) % 2
    fused, plain, exact = (
        exit_losses([t], labels, backend=b) for t, b in ((z, "triton"), (z, "reference"), (z.double(), "reference"))
    )
    assert_at_most_twice_as_wrong(fused.losses, plain.losses, exact.losses)
    assert fused.top1.equal(plain.top1)


@pytest.mark.parametrize("wrong", [0.0, 2.0])
def test_one_small_entry_that_is_wrong_is_seen(wrong):
    exact = torch.tensor([1.0, 1e-4, -0.5], dtype=torch.float64)
    value = exact.to(torch.bfloat16)
    assert_every_entry_is_rounded_once(value, exact, exact.abs())
    value[1] *= wrong
    with pytest.raises(AssertionError):
        assert_every_entry_is_rounded_once(value, exact, exact.abs())


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, of a row that is -inf throughout
def test_hits_with_ties_and_masked_classes():
    random = torch.Generator().manual_seed(0)
    values = torch.tensor([-float("inf"), -1.0, 0.0, 1.0])
    for C in (2, 4, 7):
        z = values[torch.randint(4, (12, C), generator=random)].to(DEVICE)
        labels = torch.randint(C, (12,), generator=random).to(DEVICE)
        fused, plain = (exit_losses([z], labels, backend=b) for b in ("triton", "reference"))
        assert fused.top1.equal(plain.top1)
        assert fused.top5.equal(plain.top5)
        torch.testing.assert_close(fused.losses, plain.losses, equal_nan=True)
        torch.testing.assert_close(fused.confidences, plain.confidences, equal_nan=True)


def test_a_masked_class_before_the_first_block_ends_and_large_logits_keep_their_digits():
    z = torch.full((1, 5000), -float("inf"), device=DEVICE)
    z[0, 4500:] = 1e4 + normal(500)
    labels = torch.tensor([4700], device=DEVICE)
    fused = exit_losses([z], labels, backend="triton").losses
    assert_at_most_twice_as_wrong(
        fused, reference.exit_losses([z], labels).losses, reference.exit_losses([z.double()], labels).losses
    )
    assert fused.item() < 20


def test_nan_is_no_hit_and_a_label_outside_the_classes_is_a_nan_loss():
    z = torch.tensor([[float("nan")] * 6, [0, float("nan"), 0, 0, 0, 0], [1.0, 0, 0, 0, 0, 0]], device=DEVICE)
    out = exit_losses([z], torch.tensor([0, 0, 6], device=DEVICE), backend="triton")
    assert out.losses.isnan().all()
    assert not out.top1.any()


def test_what_autograd_may_ask():
    labels = torch.tensor([1, 0], device=DEVICE)
    logits = [normal(2, 3).requires_grad_(), normal(2, 3, seed=1).T.contiguous().T]  # one needs no gradient
    losses = exit_losses(logits, labels, backend="triton").losses
    with pytest.raises(ValueError, match="differentiable once"):
        torch.autograd.grad(losses.sum(), logits[0], create_graph=True)
    (grad,) = torch.autograd.grad(losses[:, 0].sum(), logits[0], retain_graph=True)
    expected = torch.softmax(logits[0], 1).detach() - torch.nn.functional.one_hot(labels, 3)
    torch.testing.assert_close(grad, expected)
    (again,) = torch.autograd.grad(losses[:, 0].sum(), logits[0])  # two vector-Jacobian products of one graph
    assert again.equal(grad)
    with forward_ad.dual_level():  # only one of the exits moves
        dual = [logits[0].detach(), forward_ad.make_dual(logits[1], torch.ones(2, 3, device=DEVICE))]
        tangent = forward_ad.unpack_dual(exit_losses(dual, labels, backend="triton").losses).tangent
    torch.testing.assert_close(tangent, torch.zeros(2, 2, device=DEVICE), rtol=0, atol=1e-6)
    empty = exit_losses([torch.zeros(0, 3, device=DEVICE)], labels[:0], backend="triton")
    assert empty.losses.shape == (0, 1)


@pytest.mark.parametrize(
    ("n", "K", "dtype"),
    [
        (1, 1, torch.float32), (1, 3, torch.float32), (31, 2, torch.bfloat16), (32, 5, torch.float32),
        (33, 8, torch.float16), (100, 3, torch.float32), (4096, 5, torch.bfloat16), (4097, 2, torch.float32),
        (8192, 2, torch.float16),
    ],
)  # fmt: skip
def test_route_with_ties(n, K, dtype):  # noqa: N803
    random = torch.Generator().manual_seed(n + K)
    special = torch.tensor([0.0, -0.0, float("nan"), float("inf"), -float("inf"), -0.5, 1e-30])
    for levels in (3, 1000):
        table = torch.randint(levels, (n, K), generator=random) / levels
        pick = torch.rand(n, K, generator=random) < 0.3
        table[pick] = special[torch.randint(len(special), (int(pick.sum()),), generator=random)]
        table = table.to(dtype).to(DEVICE)
        for counts in (quotas(n, 0.75, K), [0] * (K - 1) + [n], [n] + [0] * (K - 1)):
            assert route(table, counts, "triton").equal(route(table, counts, "reference"))


def test_route_takes_zeros_of_either_sign_as_equal():
    table = torch.tensor([[-0.0, 1.0], [0.0, 1.0], [-0.0, 1.0]], device=DEVICE)
    assert route(table, [1, 2], "triton").tolist() == [0, 1, 1]


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1), torch.tensor(0.1, dtype=torch.float64)])
@pytest.mark.parametrize(
    ("momentum", "nesterov", "dampening"), [(0.0, False, 0.0), (0.9, False, 0.0), (0.9, False, 0.3), (0.9, True, 0.0)]
)
def test_lookahead(lr, momentum, nesterov, dampening):
    shapes = [(3,), (8, 4, 3, 3), (1024,), (2500,), (), (6, 5, 1, 1), (0,)]
    params, grads, buffers = ([normal(*s, seed=i + 10 * j) for i, s in enumerate(shapes)] for j in range(3))
    params[1] = params[1].to(memory_format=torch.channels_last)  # its gradient is not
    grads[2] = normal(1027, seed=7)[3:]  # starts at 12 bytes: four values at once cannot be loaded from there
    assert fused._laid_out_as(grads[2], params[2]).data_ptr() % 16 == 0
    buffers[3] = None
    rate = lr.to(DEVICE) if isinstance(lr, Tensor) else lr
    settings = (momentum, 0.01, nesterov, dampening)
    before = [p.clone() for p in params]
    ahead = lookahead(params, grads, buffers, rate, *settings, backend="triton")
    plain = lookahead(params, grads, buffers, rate, *settings, backend="reference")
    exact = lookahead(
        [p.double() for p in params], [g.double() for g in grads],
        [None if b is None else b.double() for b in buffers], rate, *settings,
    )  # fmt: skip
    for i, p in enumerate(params):
        assert p.equal(before[i])
        assert ahead[i].stride() == p.stride()
        if p.numel():
            assert_at_most_twice_as_wrong(ahead[i], plain[i], exact[i])


def test_lookahead_refuses_what_it_would_not_differentiate():
    p = [torch.zeros(2, device=DEVICE)]
    with pytest.raises(ValueError, match="gradient through the lookahead"):
        lookahead(p, [torch.zeros(2, device=DEVICE, requires_grad=True)], [None], 0.1, 0.9, 0, False, backend="triton")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("flip", [False, True])
def test_normalize(dtype, flip):
    images = torch.randint(256, (3, 13, 11, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    images = images.to(DEVICE)
    flags = torch.tensor([True, False, True], device=DEVICE) if flip else None
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    fused, plain = (normalize(images, mean, std, dtype, flip=flags, backend=b) for b in ("triton", "reference"))
    assert fused.is_contiguous(memory_format=torch.channels_last)
    scale, shift = (torch.tensor(v, dtype=torch.float64, device=DEVICE)[:, None, None] for v in (std, mean))
    exact = (images.permute(0, 3, 1, 2).double() / 255 - shift) / scale
    if flags is not None:
        exact = torch.where(flags[:, None, None, None], exact.flip(3), exact)
    assert_at_most_twice_as_wrong(fused, plain, exact)
