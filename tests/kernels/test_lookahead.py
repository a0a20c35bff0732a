"""The lookahead is the step that torch's own SGD would take, and takes nothing with it."""

from __future__ import annotations

import pytest
import torch

from kernels.lookahead import lookahead


def tensors(seed: int) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(seed)
    shapes = [(3, 4), (5,), (4, 2, 3, 3), (), (4, 2, 1, 1)]
    made = [torch.randn(shape, generator=random, dtype=torch.float64) for shape in shapes]
    return [t.to(memory_format=torch.channels_last) if t.dim() == 4 else t for t in made]


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dampening", [0.0, 0.3])
@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1, dtype=torch.float64)])
def test_is_the_step_of_torch_sgd_first_and_later(nesterov, momentum, dampening, lr):
    if nesterov and (momentum == 0 or dampening):
        with pytest.raises(ValueError, match="needs momentum and no dampening"):
            lookahead(tensors(0), tensors(1), [None] * 5, lr, momentum, 0.01, nesterov, dampening)
        return
    params = [p.requires_grad_() for p in tensors(0)]
    sgd = torch.optim.SGD(
        params, float(lr), momentum=momentum, dampening=dampening, weight_decay=0.01, nesterov=nesterov
    )
    for step in range(3):  # the first has no buffers yet
        grads = tensors(step + 1)
        buffers = [sgd.state[p].get("momentum_buffer") for p in params]
        before = [t.detach().clone() for t in [*params, *grads, *(b for b in buffers if b is not None)]]
        with torch.no_grad():
            ahead = lookahead(params, grads, buffers, lr, momentum, 0.01, nesterov, dampening)
        for old, now in zip(before, [*params, *grads, *(b for b in buffers if b is not None)], strict=True):
            assert old.equal(now)
        for p, g in zip(params, grads, strict=True):
            p.grad = g
        sgd.step()
        for ours, theirs in zip(ahead, params, strict=True):
            torch.testing.assert_close(ours, theirs.detach(), rtol=1e-14, atol=1e-15)


def test_a_parameter_without_a_buffer_starts_one_among_others_that_have_theirs():
    params, grads, buffers = tensors(0), tensors(1), tensors(2)
    mixed = [None if i % 2 else b for i, b in enumerate(buffers)]
    ahead = lookahead(params, grads, mixed, 0.1, 0.9, 0.0, False)
    for i, (p, g, b) in enumerate(zip(params, grads, buffers, strict=True)):
        torch.testing.assert_close(ahead[i], p - 0.1 * (g if i % 2 else 0.9 * b + g))


def test_the_gradient_flows_through_the_step():
    params, grads, buffers = tensors(0), [g.requires_grad_() for g in tensors(1)], tensors(2)
    ahead = lookahead(params, grads, buffers, 0.1, 0.9, 0.01, True)
    for gradient in torch.autograd.grad(sum(a.sum() for a in ahead), grads):
        torch.testing.assert_close(gradient, torch.full_like(gradient, -0.1 * 1.9))  # -lr * (1 + momentum)


def test_refuses_lists_that_differ_in_length_and_a_vector_of_rates():
    with pytest.raises(ValueError, match="1 parameters, 0 gradients"):
        lookahead([torch.zeros(1)], [], [None], 0.1, 0.9, 0.0, False)
    with pytest.raises(ValueError, match="0-d tensor"):
        lookahead([torch.zeros(1)], [torch.zeros(1)], [None], torch.zeros(1), 0.9, 0.0, False)
