"""Which scales an MSDNet keeps where, by the rule of its paper."""

from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.models.config import ModelConfig, msdnet_imagenet
from trainer.models.msdnet import MultiScaleLayer, msdnet


def layers(config: ModelConfig) -> list[MultiScaleLayer]:
    return [layer for block in msdnet(config, 10).blocks for layer in block.layers]


@settings(max_examples=20, deadline=None)
@given(num_exits=st.integers(1, 5), base=st.integers(1, 3), step=st.integers(1, 3), num_scales=st.integers(1, 4))
def test_scales_drop_with_depth_finest_first(num_exits: int, base: int, step: int, num_scales: int) -> None:
    factors = (1, 2, 4, 4)[:num_scales]
    config = ModelConfig(
        num_exits=num_exits,
        base=base,
        step=step,
        step_mode="even",
        first_channels=4,
        growth=2,
        growth_factors=factors,
        bottleneck_factors=factors,
        classifier_channels=4,
    )
    every = layers(config)
    interval = math.ceil(len(every) / num_scales)
    for depth, layer in enumerate(every, start=1):
        kept = num_scales - math.floor((depth - 1) / interval)
        before = num_scales - math.floor(max(0, depth - 2) / interval)
        assert len(layer.own) == kept >= 1
        assert (layer.transition is not None) == (before > kept)
        assert len(layer.down) == (kept if before > kept else kept - 1)


def test_published_net_ends_on_the_coarsest_scale_alone() -> None:
    kept = [len(layer.own) for layer in layers(msdnet_imagenet(4))]
    assert kept == [4] * 5 + [3] * 5 + [2] * 5 + [1] * 5
