"""Forward-mode differentiation of a recorded forward pass, without computing the pass again.

In the recorded pass every leaf of the net keeps what its tangent rule needs: tensors that autograd holds anyway. Then
the net's own forward runs once more, on tangents, each leaf replaced by its rule; what lies between leaves
(concatenation, flattening, interpolation) is linear and runs as it is. Where dual tensors compute the primal again and
two convolutions for the tangent of each one, the replay has the two alone: that is its floor, about two forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from kernels.norm_relu import NormReLU, norm_relu_jvp
from trainer.models.compiled_layers import NormInput, channels_last, few_pixels, pixels_read
from trainer.models.equilibrium import GradientScale

Kept = dict[str, Tensor]
Rule = Callable[..., Tensor]


class Tape:
    """What the leaves of `module` kept in one forward pass; replayed once along a direction in parameter space."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.kept: dict[nn.Module, tuple[Kept, Rule]] = {}

    @contextmanager
    def recording(self, given: Sequence[NormInput] = ()) -> Iterator[None]:
        """Every leaf that runs inside keeps its part (each may run once).

        given: what each BatchNorm2d read in another pass, in their order: they take that for what they get. In a trace,
        what leads to a norm and nowhere else (a convolution) then is dead code.
        """
        leaves = [leaf for leaf in self.module.modules() if type(leaf) in RULES]
        norms = [leaf for leaf in leaves if isinstance(leaf, nn.BatchNorm2d)]
        forwards: dict[nn.Module, Rule] = {leaf: partial(self._keep, leaf) for leaf in leaves}
        if given:
            read = iter(given)
            forwards |= {norm: partial(self._keep_given, norm, read) for norm in norms}
        with (
            _running(forwards),
            _running({norm: partial(self._keep_norm_relu, norm) for norm in norms}, "keep_norm_relu"),
        ):
            yield

    def _keep(self, leaf: nn.Module, x: Tensor) -> Tensor:
        self._refuse_again(leaf)
        keep, rule = RULES[type(leaf)]
        y = type(leaf).forward(leaf, x)
        self.kept[leaf] = keep(x, y), rule
        return y

    def _keep_given(self, norm: nn.BatchNorm2d, read: Iterator[NormInput], x: Tensor) -> Tensor:
        x, *moments = next(read)
        if not norm.training:
            return self._keep(norm, x)
        self._refuse_again(norm)
        mean, variance = moments or reversed(torch.var_mean(_single(x), dim=(0, 2, 3)))  # unbiased
        count = x.numel() // x.shape[1]
        invstd = (variance * ((count - 1) / count) + norm.eps).rsqrt()
        self.kept[norm] = {"x": x, "mean": mean, "invstd": invstd}, _batch_norm
        slope = invstd * norm.weight
        return (x * slope[:, None, None] + (norm.bias - mean * slope)[:, None, None]).to(x.dtype)

    def _keep_norm_relu(self, norm: nn.BatchNorm2d, relu: nn.ReLU, x: Tensor, found: NormReLU) -> None:
        """Both ran as one operation: the first follows by the rule of both, the second passes that on."""
        self._refuse_again(norm)
        self._refuse_again(relu)
        self.kept[norm] = {"x": x.detach(), "mean": found.mean, "invstd": found.invstd}, _norm_relu
        self.kept[relu] = {}, _passed_on

    def _refuse_again(self, leaf: nn.Module) -> None:
        if leaf in self.kept:
            raise RuntimeError(f"a {type(leaf).__name__} runs twice in one forward; it cannot be replayed")

    def replay(
        self, images: Tensor, parameters: Mapping[str, Tensor], direction: Mapping[str, Tensor]
    ) -> Sequence[Tensor]:
        """Tangents of the logits, K tensors [n, C], along `direction` at the recorded pass's parameters.

        parameters, direction  by parameter name; the first hold the values of the pass, since the net's own may have
                               moved meanwhile. Call without grad.
        """
        zero = images.new_zeros(()).expand(images.shape)  # the images do not move; no memory behind it
        forwards: dict[nn.Module, Callable[..., Tensor]] = {}
        for name, leaf in self.module.named_modules():
            if leaf in self.kept:
                own = [key for key in ("weight", "bias") if f"{name}.{key}" in parameters]
                at, moves = ({key: values[f"{name}.{key}"] for key in own} for values in (parameters, direction))
                kept, rule = self.kept[leaf]
                forwards[leaf] = partial(_follow, rule, leaf, kept, at, moves, zero)
        with _running(forwards):
            return self.module(zero)


def pushforward(
    module: nn.Module,
    images: Tensor,
    parameters: Mapping[str, Tensor],
    direction: Mapping[str, Tensor],
    given: Sequence[NormInput] = (),
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """(logits, their tangents along `direction`), K tensors [n, C] each, by a recorded pass at `parameters` of its own.

    given: see `Tape.recording`. Call without grad.
    """
    tape = Tape(module)
    with tape.recording(given):
        logits = functional_call(module, dict(parameters), (images,), tie_weights=False)
    return logits, tape.replay(images, parameters, direction)


@contextmanager
def _running(methods: Mapping[nn.Module, Callable[..., object]], name: str = "forward") -> Iterator[None]:
    """These modules run something else inside. (A forward hook takes longer to call than some of them to run.)"""
    try:
        for module, method in methods.items():
            module.__dict__[name] = method  # as setattr does, without a module's many questions before
        yield
    finally:
        for module in methods:
            module.__dict__.pop(name, None)


def replayable(module: nn.Module) -> str:
    """Empty where every leaf of `module` has a tangent rule; else the first that has none."""
    for leaf in module.modules():
        if not any(True for _ in leaf.children()) and type(leaf) not in (*RULES, nn.Identity, nn.ModuleList):
            return type(leaf).__name__
        if isinstance(leaf, nn.Conv2d) and (leaf.groups != 1 or leaf.padding_mode != "zeros"):
            return f"{type(leaf).__name__} with groups or padding mode"
    return ""


def _follow(rule: Rule, leaf: nn.Module, kept: Kept, at: Kept, moves: Kept, zero: Tensor, tangent: Tensor) -> Tensor:
    return rule(leaf, kept, at, moves, None if tangent is zero else tangent)


def _keep_input(x: Tensor, _: Tensor) -> Kept:
    return {"x": x.detach()}


def _keep_output(_: Tensor, y: Tensor) -> Kept:
    return {"y": y.detach()}


def _keep_batch_norm(x: Tensor, y: Tensor) -> Kept:
    # The backward node holds the batch's mean and 1/std; a node without them (running statistics) holds none.
    mean, invstd = getattr(y.grad_fn, "_saved_result1", None), getattr(y.grad_fn, "_saved_result2", None)
    if mean is None or invstd is None or mean.numel() != x.shape[1]:
        return {"x": x.detach()}
    return {"x": x.detach(), "mean": mean, "invstd": invstd}


def _keep_max_pool(x: Tensor, y: Tensor) -> Kept:
    indices = getattr(y.grad_fn, "_saved_result1", None)
    return {"x": x.detach()} if indices is None else {"indices": indices}


def _conv(leaf: nn.Conv2d, kept: Kept, at: Kept, moves: Kept, t: Tensor | None) -> Tensor:
    """y' = conv(x, W') + conv(t, W): two convolutions, since one over concatenated channels copies x and t first."""
    x, bias = kept["x"], moves.get("bias")
    if t is not None and bias is None and leaf.kernel_size == leaf.stride == (1, 1) and leaf.padding == (0, 0):
        return _pointwise(x, moves["weight"], t, at["weight"])
    if t is not None and bias is None and _few_pixels(leaf, x, t):
        return _written_out(leaf, x, moves["weight"], t, at["weight"])
    moved = F.conv2d(x, moves["weight"], bias, leaf.stride, leaf.padding, leaf.dilation)
    if t is None:
        return moved
    return moved.add_(F.conv2d(t, at["weight"], None, leaf.stride, leaf.padding, leaf.dilation))


def _pointwise(x: Tensor, moves: Tensor, t: Tensor, weight: Tensor) -> Tensor:
    """The same for 1x1 convolutions: a matrix product that the second adds itself to, no pass over memory between."""
    n, C, H, W = x.shape
    a, b = (w.to(x.dtype).flatten(1) for w in (moves, weight))  # [out, C]
    if channels_last(x) and channels_last(t):
        rows, turned = (z.permute(0, 2, 3, 1).reshape(-1, C) for z in (x, t))
        return torch.mm(rows, a.T).addmm_(turned, b.T).view(n, H, W, -1).permute(0, 3, 1, 2)
    a, b = (w.expand(n, -1, -1) for w in (a, b))
    return torch.bmm(a, x.flatten(2)).baddbmm_(b, t.flatten(2)).view(n, -1, H, W)


def _few_pixels(leaf: nn.Conv2d, x: Tensor, t: Tensor) -> bool:
    """Whether matrix products over written-out pixels are faster (a classifier's: 1.6 to 3 times)."""
    if x.device.type != "cpu" or not few_pixels(x, leaf.stride[0]):
        return False
    kernel, stride = leaf.kernel_size, leaf.stride
    usual = kernel[0] == kernel[1] and stride[0] == stride[1] and leaf.padding == (kernel[0] // 2, kernel[0] // 2)
    return usual and leaf.dilation == (1, 1) and channels_last(x) and channels_last(t)


def _written_out(leaf: nn.Conv2d, x: Tensor, moves: Tensor, t: Tensor, weight: Tensor) -> Tensor:
    read, turned = (pixels_read(z, leaf.kernel_size[0], leaf.stride[0]) for z in (x, t))  # [n, H, W, k * k * C]
    a, b = (w.to(x.dtype).permute(0, 2, 3, 1).flatten(1) for w in (moves, weight))
    rows = torch.mm(read.flatten(0, 2), a.T).addmm_(turned.flatten(0, 2), b.T)
    return rows.view(*read.shape[:3], -1).permute(0, 3, 1, 2)


def _linear(_: nn.Linear, kept: Kept, at: Kept, moves: Kept, t: Tensor | None) -> Tensor:
    assert t is not None
    return F.linear(t, at["weight"]) + F.linear(kept["x"], moves["weight"], moves.get("bias"))


def _gradient_scale(leaf: GradientScale, kept: Kept, at: Kept, moves: Kept, t: Tensor | None) -> Tensor:
    assert t is not None
    return leaf.factor * t


def _batch_norm(leaf: nn.BatchNorm1d | nn.BatchNorm2d, kept: Kept, at: Kept, moves: Kept, t: Tensor | None) -> Tensor:
    """y' = J t + gamma' xhat + beta' in two passes over memory: slope_t * t + slope_x * x + offset, by channel.

    J, the Jacobian in x, is its own adjoint up to gamma: the two sums over t that it takes in batch statistics are what
    the backward kernel gives as gradients of gamma and beta.
    """
    assert t is not None
    x = kept["x"]
    if leaf.training:
        if "mean" in kept:
            mean, invstd = kept["mean"], kept["invstd"]
        else:
            variance, mean = torch.var_mean(_single(x), dim=(0, *range(2, x.dim())), correction=0)
            invstd = (variance + leaf.eps).rsqrt()
        _, along_xhat, along_one = torch.ops.aten.native_batch_norm_backward(
            t, x, at["weight"], None, None, mean, invstd, True, leaf.eps, [False, True, True]
        )
        slope_t, mean_of = at["weight"] * invstd, -t.shape[1] / t.numel()
        slope_x = torch.addcmul(moves["weight"], slope_t, along_xhat, value=mean_of).mul_(invstd)
        offset = torch.addcmul(moves["bias"], slope_t, along_one, value=mean_of).addcmul_(slope_x, mean, value=-1)
    else:
        assert leaf.running_mean is not None
        assert leaf.running_var is not None
        mean, invstd = leaf.running_mean, (leaf.running_var + leaf.eps).rsqrt()
        slope_t, slope_x = at["weight"] * invstd, moves["weight"] * invstd
        offset = moves["bias"] - slope_x * mean
    shape = (-1, *[1] * (x.dim() - 2))
    slope_t, slope_x, offset = (values.to(x.dtype).view(shape) for values in (slope_t, slope_x, offset))
    return torch.addcmul(offset, x, slope_x).addcmul_(t, slope_t)


def _single(x: Tensor) -> Tensor:
    """At least in single precision: what moments are taken in."""
    return x.float() if x.dtype.itemsize < 4 else x


def _relu(leaf: nn.ReLU, kept: Kept, at: Kept, moves: Kept, t: Tensor | None) -> Tensor:
    if leaf.inplace:  # then nobody else reads the tangent of its input either
        assert t is not None
        return torch.ops.aten.threshold_backward.grad_input(t, kept["y"], 0, grad_input=t)
    return torch.ops.aten.threshold_backward(t, kept["y"], 0)


def _norm_relu(leaf: nn.BatchNorm2d, kept: Kept, at: Kept, moves: Kept, t: Tensor | None) -> Tensor:
    """Of batch-norm in batch statistics and the ReLU behind it, where one kernel ran both."""
    assert t is not None
    return norm_relu_jvp(
        kept["x"], t, kept["mean"], kept["invstd"], at["weight"], at["bias"], moves["weight"], moves["bias"]
    )


def _passed_on(leaf: nn.Module, kept: Kept, at: Kept, moves: Kept, t: Tensor | None) -> Tensor:
    assert t is not None
    return t


def _max_pool(leaf: nn.MaxPool2d, kept: Kept, at: Kept, moves: Kept, t: Tensor | None) -> Tensor:
    assert t is not None
    indices = kept.get("indices")
    if indices is None:
        _, indices = F.max_pool2d(
            kept["x"], leaf.kernel_size, leaf.stride, leaf.padding, leaf.dilation, leaf.ceil_mode, return_indices=True
        )
    if not channels_last(t):
        return t.flatten(2).gather(2, indices.flatten(2)).view(indices.shape)
    n, C, H, W = indices.shape  # places lie in a channel's H * W: channels stay last
    t, places = (z.permute(0, 2, 3, 1).reshape(n, -1, C) for z in (t, indices))
    return t.gather(1, places).view(n, H, W, C).permute(0, 3, 1, 2)


def _linear_map(leaf: nn.Module, kept: Kept, at: Kept, moves: Kept, t: Tensor | None) -> Tensor:
    return type(leaf).forward(leaf, t)


# leaf type -> (what the recorded pass keeps, the tangent rule)
RULES: dict[type[nn.Module], tuple[Callable[[Tensor, Tensor], Kept], Rule]] = {
    nn.Conv2d: (_keep_input, _conv),
    nn.Linear: (_keep_input, _linear),
    nn.BatchNorm1d: (_keep_batch_norm, _batch_norm),
    nn.BatchNorm2d: (_keep_batch_norm, _batch_norm),
    nn.ReLU: (_keep_output, _relu),
    nn.MaxPool2d: (_keep_max_pool, _max_pool),
    nn.AvgPool2d: (lambda x, y: {}, _linear_map),
    nn.AdaptiveAvgPool2d: (lambda x, y: {}, _linear_map),
    nn.Flatten: (lambda x, y: {}, _linear_map),
    GradientScale: (lambda x, y: {}, _gradient_scale),
}
