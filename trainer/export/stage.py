"""A net cut into its blocks: what one graph of an exported net computes."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from trainer.models.fold import folded
from trainer.models.imta import ImtaNet
from trainer.models.multi_exit import MultiExitNet


class Stage(nn.Module):
    """Block k (from 0) and its exit: what the stage before gave -> (logits [n, C], features that go on ...).

    The first stage takes images [n, 3, H, W] and holds the stem; the last one gives logits alone. Exits that
    collaborate take the logits before them ahead of the features.
    """

    def __init__(self, net: MultiExitNet, k: int, last: bool) -> None:
        super().__init__()
        self.training = False  # as the folded net is
        self.k, self.last, self.collaborates = k, last, isinstance(net, ImtaNet)
        self.net = copy.deepcopy(net)  # less what other stages hold
        for parts in (self.net.blocks, self.net.classifiers):
            for other in range(net.num_exits):
                if other != k:
                    parts[other] = nn.Identity()
        if k > 0:
            self.net.stem = nn.Identity()
        if isinstance(self.net, ImtaNet):
            self.net.add_module("teacher", nn.Identity())

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        before = None
        if self.k == 0:
            features = self.net.stem(given[0])
        else:
            before, features = (given[0], list(given[1:])) if self.collaborates else (None, list(given))
        features, logits = self.net.step(self.k, features, before)
        return (logits,) if self.last else (logits, *features)


@dataclass(frozen=True)
class Link:
    """A stage, the names of what it takes and gives, and an example of each of them (two images).

    Names agree along the chain: `images`, then `logits_K` and `feature_K_1`, `feature_K_2`, ... of the stage that ends
    at exit K.
    """

    exit: int
    stage: Stage
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


def chain(net: MultiExitNet, num_exits: int, image_size: int) -> list[Link]:
    """The stages of `net`, folded and in float32 on the CPU, up to exit `num_exits`, which then is the last one."""
    net = folded(copy.deepcopy(net).cpu().double()).float()  # folded in double: rounded once
    known = {"images": torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))}
    names, links = ["images"], []
    for k in range(num_exits):
        stage = Stage(net, k, last=k == num_exits - 1)
        with torch.no_grad():
            given = stage(*(known[name] for name in names))
        outputs = [f"logits_{k + 1}", *(f"feature_{k + 1}_{index}" for index in range(1, len(given)))]
        known |= dict(zip(outputs, given, strict=True))
        links.append(Link(k + 1, stage, {name: known[name] for name in names}, {name: known[name] for name in outputs}))
        names = outputs if stage.collaborates else outputs[1:]
    return links
