"""Multi-Scale Dense Network (ICLR 2018): every layer makes new channels on every kept scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from trainer.models.blocks import Bottleneck, Classifier, ConvNormReLU, Stem, concatenated
from trainer.models.config import ModelConfig
from trainer.models.multi_exit import MultiExitNet


class MultiScaleLayer(nn.Module):
    """One layer: each kept scale's feature, new channels of the finer scale (strided) and new channels of its own.

    Features come and go finest first. Where the finest scale ends here, a transition narrows the rest.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        factors: Sequence[int],
        new_channels: Sequence[int],
        out_channels: Sequence[int],
    ) -> None:
        """in_channels, factors (of bottlenecks): of the input scales; new_channels, out_channels: of the kept ones."""
        super().__init__()
        self.dropped = dropped = len(in_channels) - len(new_channels)  # finest scales that end here: 0 or 1
        self.own = nn.ModuleList()
        self.down = nn.ModuleList()  # down[s] reads input scale s
        for scale, new in enumerate(new_channels, start=dropped):
            from_finer = new // 2 if scale > 0 else 0
            if scale > 0:
                self.down.append(Bottleneck(in_channels[scale - 1], from_finer, factors[scale - 1], stride=2))
            self.own.append(Bottleneck(in_channels[scale], new - from_finer, factors[scale]))
        self.transition: nn.ModuleList | None = None
        if dropped:
            triples = zip(in_channels[dropped:], new_channels, out_channels, strict=True)
            self.transition = nn.ModuleList(ConvNormReLU(old + new, out, kernel=1) for old, new, out in triples)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        out = []
        for scale, own in enumerate(self.own, start=self.dropped):
            parts = [features[scale], own(features[scale])]
            if scale > 0:
                parts.insert(1, self.down[scale - 1](features[scale - 1]))
            out.append(concatenated(parts))
        if self.transition is not None:
            out = [narrow(x) for narrow, x in zip(self.transition, out, strict=True)]
        return out


class MultiScaleBlock(nn.Module):
    """The layers between two exits."""

    def __init__(self, layers: Sequence[MultiScaleLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        for layer in self.layers:
            features = layer(features)
        return features


def msdnet(config: ModelConfig, num_classes: int) -> MultiExitNet:
    """The MSDNet of a config, not yet initialised. Source: METHOD.md section 3."""
    factors, num_scales = config.growth_factors, len(config.growth_factors)
    width = config.first_channels  # every scale has width * factor channels throughout
    stem = Stem(config.stem, [width * factor for factor in factors], strides=[2] * (num_scales - 1))
    num_layers = sum(config.layers_per_block)
    interval = math.ceil(num_layers / num_scales)

    blocks, classifiers, depth = [], [], 0
    for layers_here in config.layers_per_block:
        layers = []
        for _ in range(layers_here):
            depth += 1
            # Scales dropped before and after layer `depth` (counted from 1), finest first.
            before, after = max(0, depth - 2) // interval, (depth - 1) // interval
            out_width = width + config.growth
            if after > before:
                # Rounded before the factor: the published costs of the 7-exit net need it.
                out_width = math.floor(config.reduction * out_width)
            layer = MultiScaleLayer(
                in_channels=[width * factor for factor in factors[before:]],
                factors=config.bottleneck_factors[before:],
                new_channels=[config.growth * factor for factor in factors[after:]],
                out_channels=[out_width * factor for factor in factors[after:]],
            )
            width = out_width
            layers.append(layer)
        blocks.append(MultiScaleBlock(layers))
        classifiers.append(Classifier(width * factors[-1], config.classifier_channels, num_classes))
    return MultiExitNet(stem, blocks, classifiers, config.batch_norm, equilibrium=config.imta == "pretrain")
