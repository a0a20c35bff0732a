"""A RANet's sub-networks: what is fused, what shrinks, and what each hands to the next."""

from __future__ import annotations

import torch

from trainer.models.build import build_model
from trainer.models.config import ranet_cifar
from trainer.models.ranet import resized


def test_blocks_of_every_exit() -> None:
    net = build_model(ranet_cifar("c2"), 10)
    assert [len(block.fused) for block in net.blocks] == [0, 0, 2, 0, 4, 0, 6, 0]
    assert [len(block.block.layers) for block in net.blocks] == [2, 4, 6, 8, 10, 12, 14, 16]
    assert [[len(fused.layers) for fused in block.fused] for block in net.blocks if block.fused] == [
        [2, 4],
        [2, 4, 6, 8],
        [2, 4, 6, 8, 10, 12],
    ]


def test_every_exit_reads_the_coarsest_resolution() -> None:
    net = build_model(ranet_cifar("c2"), 10).eval()
    with torch.no_grad():
        features = net.stem(torch.zeros(1, 3, 32, 32))
        assert [feature.shape[2] for feature in features] == [8, 16, 16, 32]
        for block, _ in net.stages():
            features = block(features)
            assert features[-1].shape[2:] == (8, 8)
    assert len(features) == 1  # nothing is carried past the last exit


def test_nothing_is_resized_to_its_own_size() -> None:
    x = torch.randn(1, 2, 8, 8)
    assert resized(x, like=torch.zeros(1, 5, 8, 8)) is x
    corners = resized(x, like=torch.zeros(1, 5, 16, 16))[..., ::15, ::15]
    torch.testing.assert_close(corners, x[..., ::7, ::7])  # corners keep their values: align_corners=True
