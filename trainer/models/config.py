"""Which net: every number that shapes an MSDNet or a RANet, and the published forms."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

# Far beyond any published net: a mistyped or a stranger's configuration shall not build for hours.
MOST = {"num_exits": 100, "base": 1000, "step": 1000, "num_classes": 1_000_000} | dict.fromkeys(
    ("first_channels", "growth", "classifier_channels"), 65_536
)
MOST_FACTOR, MOST_SCALES, MOST_LAYERS = 1024, 16, 1000


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a multi-exit net. Source: METHOD.md section 3.

    net                 "msdnet" (all scales in every layer) or "ranet" (one sub-network per base feature)
    stem                "cifar": 3x3 convolution; "imagenet": 7x7/2 convolution and 3x3/2 max pool
    num_classes         classes; 0 follows the data
    num_exits           K; a RANet has as many as its finest sub-network has blocks
    first_channels      channels of the finest stem feature before its growth factor
    growth              new channels a layer before the scale's growth factor
    growth_factors      one a scale; MSDNet: finest first, RANet: coarsest first
    bottleneck_factors  width of a 1x1 convolution over that of the 3x3 convolution after it, ordered as above
    base, step          layers before exit 1, and how many more each following block has (`layers_per_block`)
    step_mode           "even": `step` layers in every block after the first; "linear": more in each
    reduction           share of channels a transition keeps
    classifier_channels channels of a classifier's two convolutions; 0: as many as the feature it reads
    scales              RANet: halvings plus one that each sub-network passes through, coarsest first
    blocks              RANet: blocks of each sub-network, coarsest first
    compression         RANet: share of a fused layer's new channels that the coarser sub-network gives
    batch_norm          "batch": batch statistics while training; "running": running statistics also then
    imta                "pretrain": gradient equilibrium while training; "finetune": that net frozen, with new exits
                        that collaborate; "off": neither (METHOD: IMTA)
    """

    net: Literal["msdnet", "ranet"] = "msdnet"
    stem: Literal["cifar", "imagenet"] = "cifar"
    num_classes: int = 0
    num_exits: int = 5
    first_channels: int = 16
    growth: int = 6
    growth_factors: tuple[int, ...] = (1, 2, 4)
    bottleneck_factors: tuple[int, ...] = (1, 2, 4)
    base: int = 1
    step: int = 1
    step_mode: Literal["even", "linear"] = "linear"
    reduction: float = 0.5
    classifier_channels: int = 128
    scales: tuple[int, ...] = ()
    blocks: tuple[int, ...] = ()
    compression: float = 0.25
    batch_norm: Literal["batch", "running"] = "batch"
    imta: Literal["off", "pretrain", "finetune"] = "off"

    def __post_init__(self) -> None:
        for name in ("first_channels", "growth", "base", "step", "num_exits"):
            if getattr(self, name) < 1:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 1")
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at most {most}")
        for name in ("num_classes", "classifier_channels"):
            if getattr(self, name) < 0:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be at least 0")
        if not self.growth_factors or min(self.growth_factors + self.bottleneck_factors) < 1:
            raise ValueError(
                f"model.growth_factors {self.growth_factors} and model.bottleneck_factors {self.bottleneck_factors} "
                "must be whole numbers from 1 on, one a scale"
            )
        if len(self.growth_factors) != len(self.bottleneck_factors):
            raise ValueError(
                f"model.growth_factors has {len(self.growth_factors)} scales and model.bottleneck_factors "
                f"{len(self.bottleneck_factors)}; give one number a scale in both"
            )
        if max(self.growth_factors + self.bottleneck_factors) > MOST_FACTOR or len(self.growth_factors) > MOST_SCALES:
            raise ValueError(
                f"model.growth_factors has {len(self.growth_factors)} scales, factors up to {max(self.growth_factors)} "
                f"and {max(self.bottleneck_factors)}; there may be {MOST_SCALES} scales and factors up to {MOST_FACTOR}"
            )
        if sum(self.layers_per_block) > MOST_LAYERS:
            raise ValueError(
                f"model.num_exits {self.num_exits}, model.base {self.base} and model.step {self.step} make "
                f"{sum(self.layers_per_block)} layers; set smaller ones, for at most {MOST_LAYERS}"
            )
        for name, value in (("reduction", self.reduction), ("compression", self.compression)):
            if not 0.0 < value < 1.0:
                raise ValueError(f"model.{name} is {value}; it must lie between 0 and 1")
        if self.net == "msdnet":
            self._check_msdnet()
        else:
            self._check_ranet()

    def _check_msdnet(self) -> None:
        if self.scales or self.blocks or self.compression != 0.25:
            raise ValueError(
                f"model.scales {self.scales}, model.blocks {self.blocks} and model.compression {self.compression} "
                "shape a RANet; leave them out or set model.net=ranet"
            )
        if self.reduction * (self.first_channels + self.growth) < 1:
            raise ValueError(
                f"model.reduction {self.reduction} leaves no channel of {self.first_channels + self.growth} in a "
                "transition; set a larger model.reduction"
            )

    def _check_ranet(self) -> None:
        if self.imta != "off":
            raise ValueError(f"model.imta is {self.imta}, which is for MSDNets; set model.net=msdnet or model.imta=off")
        if not len(self.scales) == len(self.blocks) == len(self.growth_factors):
            raise ValueError(
                f"a RANet has one entry a sub-network in model.growth_factors {self.growth_factors}, "
                f"model.scales {self.scales} and model.blocks {self.blocks}; make them equally long"
            )
        if self.scales[0] < 1 or any(not 0 <= b - a <= 1 for a, b in pairwise(self.scales)):
            raise ValueError(f"model.scales is {self.scales}; from 1 on, each must equal the one before or be 1 more")
        if self.blocks[0] < 1 or any(b <= a for a, b in pairwise(self.blocks)):
            raise ValueError(f"model.blocks is {self.blocks}; each sub-network needs more blocks than the coarser one")
        if self.num_exits != self.blocks[-1]:
            raise ValueError(
                f"model.num_exits is {self.num_exits}, but sub-networks of {self.blocks} blocks have {self.blocks[-1]} "
                f"exits; set model.num_exits={self.blocks[-1]}"
            )
        smallest = self.compression * min(self.growth_factors[1:], default=1)
        if self.growth * smallest < 1 and len(self.blocks) > 1:
            raise ValueError(
                f"model.growth {self.growth} leaves the coarser sub-network no channel of a fused layer at "
                f"model.compression {self.compression}; set model.growth={math.ceil(1 / smallest)} or more"
            )

    @property
    def layers_per_block(self) -> tuple[int, ...]:
        """Layers of the K blocks that end in an exit, in order.

        The first has `base`. Even: `step` in each other. Linear: block i = 1, 2, .. has step * i + 1 in an MSDNet and
        base + step * i in a RANet (the two authors' rules; equal for base = 1).
        """
        if self.step_mode == "even":
            return (self.base, *(self.step for _ in range(1, self.num_exits)))
        first = 1 if self.net == "msdnet" else self.base
        return (self.base, *(first + self.step * i for i in range(1, self.num_exits)))


def msdnet_imagenet(step: int) -> ModelConfig:
    """MSDNet for 224 px: 4 layers before exit 1, then `step` (4, 6 or 7 are published) before each of 4 more."""
    return ModelConfig(
        stem="imagenet",
        first_channels=32,
        growth=16,
        growth_factors=(1, 2, 4, 4),
        bottleneck_factors=(1, 2, 4, 4),
        base=4,
        step=step,
        step_mode="even",
        classifier_channels=0,
    )


def msdnet_cifar(num_exits: int) -> ModelConfig:
    """MSDNet for 32 px: 1, 2, 3, .. layers before its exits (5 or 7 are published)."""
    return ModelConfig(num_exits=num_exits)


def ranet_cifar(form: Literal["c1", "c2"]) -> ModelConfig:
    """RANet Model-C-1 (6 exits) or Model-C-2 (8 exits) for 32 px."""
    factors, scales, blocks = {
        "c1": ((4, 2, 1), (1, 2, 3), (2, 4, 6)),
        "c2": ((4, 2, 2, 1), (1, 2, 2, 3), (2, 4, 6, 8)),
    }[form]
    return ModelConfig(
        net="ranet",
        num_exits=blocks[-1],
        growth_factors=factors,
        bottleneck_factors=factors,
        base=2,
        step=2,
        scales=scales,
        blocks=blocks,
    )


def ranet_imagenet() -> ModelConfig:
    """RANet for 224 px: 4 sub-networks, 8 layers a block, 8 exits."""
    return ModelConfig(
        net="ranet",
        stem="imagenet",
        num_exits=8,
        growth=16,
        growth_factors=(4, 2, 1, 1),
        bottleneck_factors=(4, 2, 1, 1),
        base=8,
        step=8,
        step_mode="even",
        classifier_channels=0,
        scales=(1, 2, 3, 4),
        blocks=(2, 4, 6, 8),
    )
