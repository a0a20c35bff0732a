"""What both nets are made of: convolution units, the stem and the classifier.

Every operation with a derivative of its own is a module (convolution, batch-norm, ReLU, pooling, linear); only
concatenation, flattening and interpolation are functions. So a forward pass can be followed leaf by leaf.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from kernels.norm_relu import Running, norm_relu_backend
from kernels.norm_relu import norm_relu as in_batch_statistics
from trainer.models import compiled_layers
from trainer.models.compiled_layers import convolution, max_pool


def concatenated(parts: Sequence[Tensor]) -> Tensor:
    """Parts [B, C_i, H, W] along their channels, channels-last if they are.

    One channel's strides fit both layouts; torch.cat takes them for NCHW and gives up channels-last for the whole
    (every fused layer of a CIFAR RANet's finest sub-network has such a part). The view makes them channels-last.
    """
    return torch.cat([x.squeeze(1).unsqueeze(-1).permute(0, 3, 1, 2) if x.shape[1] == 1 else x for x in parts], dim=1)


def norm_relu(norm: nn.Module, relu: nn.ReLU, x: Tensor) -> Tensor:
    """relu(norm(x)) for x [B, C, H, W]: module by module or, where there is a kernel for both, by that.

    What records a pass module by module has put its own forward into `norm`; it learns of both by `keep_norm_relu`.
    """
    if not _has_kernel(norm, relu, x):
        return compiled_layers.norm_relu(norm, relu, x)
    assert isinstance(norm, nn.BatchNorm2d)
    running = None
    if norm.track_running_stats:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        assert norm.momentum is not None
        running = Running(norm.running_mean, norm.running_var, norm.num_batches_tracked, norm.momentum)
    found = in_batch_statistics(x, norm.weight, norm.bias, norm.eps, running)
    keep = norm.__dict__.get("keep_norm_relu")
    if keep is not None:
        keep(relu, x, found)
    return found.y


def _has_kernel(norm: nn.Module, relu: nn.ReLU, x: Tensor) -> bool:
    """In training, in eager mode, on plain tensors, where nothing that does not know of it runs in their place."""
    if torch.compiler.is_compiling() or not norm.training or type(x) is not Tensor or x.is_meta:
        return False
    if type(norm) is not nn.BatchNorm2d or type(relu) is not nn.ReLU or not norm.affine or norm.momentum is None:
        return False
    if "forward" in norm.__dict__ and "keep_norm_relu" not in norm.__dict__:
        return False
    if x.numel() <= x.shape[1] or norm_relu_backend(x, norm.weight) == "reference":
        return False
    return not any(m._forward_hooks or m._forward_pre_hooks for m in (norm, relu))


class ConvNormReLU(nn.Module):
    """Convolution without bias, batch-norm, ReLU: [B, C, H, W] -> [B, out, H / stride, W / stride].

    ValueError for no output channel: what a share of few channels, rounded down, can come to.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        if out_channels < 1:
            raise ValueError(
                "a layer of this net would have no channel; raise model.growth, model.first_channels, "
                "model.compression or their factors"
            )
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)  # batch-norm's derivatives do not read its output

    def forward(self, x: Tensor) -> Tensor:
        return norm_relu(self.norm, self.relu, convolution(self.conv, x))


class Bottleneck(nn.Module):
    """1x1 convolution to min(in, factor * out) channels, then a 3x3 convolution to `out_channels`."""

    def __init__(self, in_channels: int, out_channels: int, factor: int, stride: int = 1) -> None:
        super().__init__()
        width = min(in_channels, factor * out_channels)
        self.reduce = ConvNormReLU(in_channels, width, kernel=1)
        self.conv = ConvNormReLU(width, out_channels, kernel=3, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.reduce(x))


class ImageNetStem(nn.Module):
    """7x7/2 convolution with bias, batch-norm, ReLU, 3x3/2 max pool: a quarter of the resolution."""

    def __init__(self, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, out_channels, 7, stride=2, padding=3)
        self.norm = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, images: Tensor) -> Tensor:
        return max_pool(self.pool, norm_relu(self.norm, self.relu, self.conv(images)))


class Stem(nn.Module):
    """Images [B, 3, H, W] -> one feature a scale, finest first, each computed from the one before.

    channels: of each scale; strides: of the convolution to each scale after the first.
    """

    def __init__(self, kind: str, channels: Sequence[int], strides: Sequence[int]) -> None:
        super().__init__()
        first: nn.Module = ImageNetStem(channels[0]) if kind == "imagenet" else ConvNormReLU(3, channels[0], kernel=3)
        steps = zip(channels, channels[1:], strides, strict=False)
        self.scales = nn.ModuleList([first, *(ConvNormReLU(a, b, kernel=3, stride=s) for a, b, s in steps)])

    def forward(self, images: Tensor) -> list[Tensor]:
        features: list[Tensor] = []
        for scale in self.scales:
            features.append(scale(features[-1] if features else images))
        return features


class Classifier(nn.Module):
    """One exit: [B, C, H, W] -> logits [B, classes]; two strided convolutions, a 2x2 average pool, a linear layer."""

    def __init__(self, in_channels: int, channels: int, num_classes: int) -> None:
        super().__init__()
        width = channels or in_channels
        self.convs = nn.Sequential(
            ConvNormReLU(in_channels, width, kernel=3, stride=2), ConvNormReLU(width, width, kernel=3, stride=2)
        )
        self.pool = nn.AvgPool2d(2)
        self.linear = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if not (5 <= x.shape[2] <= 12 and 5 <= x.shape[3] <= 12):
            raise ValueError(
                f"the coarsest feature is {x.shape[2]}x{x.shape[3]} px; a classifier reads 5 to 12 px (it divides by 8 "
                "and leaves one pixel): change the image size, the number of scales or model.stem"
            )
        return self.linear(self.pool(self.convs(x)).flatten(1))


def initialise(net: nn.Module) -> None:
    """Convolutions ~ N(0, 2 / (k * k * out)), biases 0; batch-norm (1, 0) and linear weights are torch's default."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)
