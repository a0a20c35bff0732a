"""Resolution Adaptive Network (CVPR 2020): sub-networks from coarse to fine, each reusing the one before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from trainer.models.blocks import Bottleneck, Classifier, ConvNormReLU, Stem, concatenated
from trainer.models.config import ModelConfig
from trainer.models.multi_exit import MultiExitNet


def resized(x: Tensor, like: Tensor) -> Tensor:
    """x brought to the height and width of `like` bilinearly; itself where they agree."""
    if x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=True)


class PlainLayer(nn.Module):
    """concat(x, new channels of x)."""

    def __init__(self, in_channels: int, new_channels: int, factor: int) -> None:
        super().__init__()
        self.own = Bottleneck(in_channels, new_channels, factor)

    def forward(self, x: Tensor) -> Tensor:
        return concatenated([x, self.own(x)])


class FusedLayer(nn.Module):
    """concat(x, new channels of the coarser sub-network's feature, new channels of x), at the size of the last."""

    def __init__(
        self,
        in_channels: int,
        coarse_channels: int,
        new_channels: tuple[int, int],
        factors: tuple[int, int],
        stride: int,
    ) -> None:
        """new_channels, factors: of the coarser sub-network's part and of the own part."""
        super().__init__()
        self.coarse = Bottleneck(coarse_channels, new_channels[0], factors[0])
        self.own = Bottleneck(in_channels, new_channels[1], factors[1], stride=stride)

    def forward(self, x: Tensor, coarse: Tensor) -> Tensor:
        own = self.own(x)
        return concatenated([resized(x, own), resized(self.coarse(coarse), own), own])


class Block(nn.Module):
    """Layers of one sub-network, plain or fused, then what ends the block: fusion and a transition where it has them.

    Returns the block's output and its history: its input and every layer's output, which the finer sub-network reads.
    """

    def __init__(
        self, layers: Sequence[nn.Module], fusion: ConvNormReLU | None, transition: ConvNormReLU | None
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.fusion = fusion
        self.transition = transition

    def forward(self, x: Tensor, coarse: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """x: [B, C, H, W]; coarse: history of the coarser sub-network's block of the same number, empty if plain."""
        history = [x]
        for index, layer in enumerate(self.layers):
            x = layer(x, coarse[index]) if coarse else layer(x)
            history.append(x)
        if self.fusion is not None:
            x = concatenated([x, resized(self.fusion(coarse[-1]), x)])
        if self.transition is not None:
            x = self.transition(x)
        return x, history


class ExitBlock(nn.Module):
    """What runs between two exits: one plain block, after all fused ones where a sub-network begins.

    Features in and out: base features of the sub-networks to come (coarsest first), history of this sub-network's
    blocks so far (only where a finer one will read it), and last the feature the exit reads.
    """

    def __init__(self, fused: Sequence[Block], block: Block, num_bases: int, begins: bool) -> None:
        """num_bases: sub-networks to come after this one; begins: this is the sub-network's first plain block."""
        super().__init__()
        self.fused = nn.ModuleList(fused)
        self.lengths = [len(block.layers) + 1 for block in fused]  # features in each coarser block's history
        self.block = block
        self.num_bases = num_bases
        self.begins = begins

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        history: list[Tensor] = []
        if self.begins:
            # The stem's features, or those of the coarser sub-network's last exit, whose own feature ends here.
            x, bases = features[0], features[1 : 1 + self.num_bases]
            coarser = features[1 + self.num_bases : -1]
            for block, length in zip(self.fused, self.lengths, strict=True):
                x, own = block(x, coarser[:length])
                coarser = coarser[length:]
                history += own
        else:
            x, bases, history = features[-1], features[: self.num_bases], features[self.num_bases : -1]
        x, own = self.block(x, [])
        if not self.num_bases:
            return [x]
        return [*bases, *history, *own, x]


class BaseFeatures(nn.Module):
    """The stem's features in the order the sub-networks run: coarsest first."""

    def __init__(self, stem: Stem) -> None:
        super().__init__()
        self.stem = stem

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.stem(images)[::-1]


def ranet(config: ModelConfig, num_classes: int) -> MultiExitNet:
    """The RANet of a config, not yet initialised. Source: METHOD.md section 3."""
    channels = [config.first_channels * factor for factor in config.growth_factors]  # coarsest first
    finest_first = config.scales[::-1]
    strides = [2 if a > b else 1 for a, b in pairwise(finest_first)]
    stem = BaseFeatures(Stem(config.stem, channels[::-1], strides))
    layers_of = config.layers_per_block

    blocks: list[ExitBlock] = []
    classifiers: list[Classifier] = []
    coarser: list[list[int]] = []  # channels of the coarser sub-network's history, block by block
    for index, num_blocks in enumerate(config.blocks):
        num_fused, history, fused = len(coarser), [], []
        x = channels[index]
        for number in range(1, num_blocks + 1):
            is_fused = number <= num_fused
            coarse = coarser[number - 1] if is_fused else []
            block, block_history, x = _block(config, index, number, x, coarse, layers_of[number - 1])
            history.append(block_history)
            if is_fused:
                fused.append(block)
                continue
            begins = number == num_fused + 1
            blocks.append(ExitBlock(fused if begins else [], block, len(config.blocks) - 1 - index, begins))
            classifiers.append(Classifier(x, config.classifier_channels, num_classes))
        coarser = history
    return MultiExitNet(stem, blocks, classifiers, config.batch_norm)


def _block(
    config: ModelConfig, index: int, number: int, in_channels: int, coarse: list[int], num_layers: int
) -> tuple[Block, list[int], int]:
    """Block `number` (from 1) of sub-network `index`: the block, channels of its history, and of its output."""
    num_blocks, scale = config.blocks[index], config.scales[index]
    new, factor = config.growth * config.growth_factors[index], config.bottleneck_factors[index]
    history = [in_channels]
    layers: list[nn.Module] = []
    # Block counts of the coarser sub-networks at whose end this one halves its resolution.
    downsamples = number in [0, *config.blocks[:index]][index + 1 - (scale - 1) :]
    for layer in range(1, num_layers + 1):
        if coarse:
            from_coarse = math.floor(new * config.compression)
            stride = 2 if downsamples and layer == num_layers else 1
            factors = (config.bottleneck_factors[index - 1], factor)
            parts = (from_coarse, new - from_coarse)
            layers.append(FusedLayer(history[-1], coarse[layer - 1], parts, factors, stride))
        else:
            layers.append(PlainLayer(history[-1], new, factor))
        history.append(history[-1] + new)
    x = history[-1]
    fusion = transition = None
    if coarse:
        fusion = ConvNormReLU(coarse[-1], math.floor(x * config.compression), kernel=1)
        x += math.floor(x * config.compression)
    if number in [(i + 1) * num_blocks // scale for i in range(scale - 1)]:
        narrow = math.floor(config.reduction * x)
        transition, x = ConvNormReLU(x, narrow, kernel=1), narrow
    return Block(layers, fusion, transition), history, x
