"""A net for inference alone: every batch-norm becomes part of the layer before it."""

from __future__ import annotations

import copy
import inspect

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from trainer.models.blocks import ConvNormReLU, ImageNetStem
from trainer.models.multi_exit import MultiExitNet

DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def inference_dtype(name: str) -> torch.dtype:
    """A dtype by its name; ValueError for another one."""
    if name not in DTYPES:
        raise ValueError(f"--dtype is {name!r}; it must be one of {' | '.join(DTYPES)}")
    return DTYPES[name]


def folded(net: MultiExitNet) -> MultiExitNet:
    """A copy of `net` in evaluation mode, without a batch-norm and without gradients: the same logits from fewer passes
    over memory.

    A batch-norm on its running statistics is an affine map per channel, here of a convolution's or a linear layer's
    output: weight * scale, (bias - mean) * scale + shift. Nothing in these nets normalises before it convolves.
    Raises ValueError where a batch-norm follows neither.
    """
    net = copy.deepcopy(net).eval().requires_grad_(False)
    net.equilibrium = None  # identities in evaluation mode
    for module in net.modules():
        if isinstance(module, ConvNormReLU | ImageNetStem):
            module.conv = fuse_conv_bn_eval(module.conv, module.norm)
            module.add_module("norm", nn.Identity())
        elif isinstance(module, nn.Sequential):
            _fold_linear(module)
    left = [name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    if left:
        raise ValueError(f"{left[0]} follows no convolution and no linear layer: it cannot be folded into one")
    return net.requires_grad_(False)


def _fold_linear(parts: nn.Sequential) -> None:
    for index in range(len(parts) - 1):
        linear, norm = parts[index], parts[index + 1]
        if isinstance(linear, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
            parts[index] = fuse_linear_bn_eval(linear, norm)
            parts[index + 1] = nn.Identity()


def for_inference(
    net: MultiExitNet, dtype: torch.dtype = torch.float32, *, channels_last: bool = True, compiled: bool = False
) -> MultiExitNet:
    """`folded` in `dtype` and a memory layout; images must come in the same.

    compiled  stem, blocks and classifiers each become a compiled graph that takes any number of images, so that the net
              can stop between them; the first images wait for the compiler (half a minute and more), and so does the
              first one that runs alone: a batch of 1 has graphs of its own
    Raises ValueError for `compiled` with a torch that cannot keep so many graphs apart.
    """
    small = folded(net).to(dtype)
    if channels_last:
        small = small.to(memory_format=torch.channels_last)
    if compiled:
        # All parts share the code of nn.Module's call: without isolation torch gives up at 8 graphs and runs the other
        # parts eagerly, with a warning.
        if "isolate_recompiles" not in inspect.signature(torch.compile).parameters:
            raise ValueError(
                f"torch {torch.__version__} keeps at most 8 graphs of a net; leave --compile out or upgrade"
            )
        for part in (small.stem, *small.blocks, *small.classifiers):
            part.compile(dynamic=True, isolate_recompiles=True)
    return small
