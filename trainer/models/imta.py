"""Exits that collaborate, over a frozen net (IMTA, ICCV 2019; METHOD: IMTA, phase 2)."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from trainer.models.blocks import Classifier
from trainer.models.multi_exit import MultiExitNet


class CollaboratingExit(nn.Module):
    """What trains of an exit: (pooled feature [n, width], logits of the exit before [n, C]) -> logits [n, C].

    Every exit but the first also reads ReLU(BN(Linear(logits before))), as wide as its pooled feature.
    """

    def __init__(self, width: int, num_classes: int, first: bool) -> None:
        super().__init__()
        self.width = width
        parts = (nn.Linear(num_classes, width), nn.BatchNorm1d(width), nn.ReLU())
        self.inline = None if first else nn.Sequential(*parts)
        self.linear = nn.Linear(width if first else 2 * width, num_classes)

    def forward(self, pooled: Tensor, before: Tensor | None) -> Tensor:
        if self.inline is None:
            return self.linear(pooled)
        assert before is not None, "an exit that collaborates reads the logits of the one before"
        return self.linear(torch.cat([pooled, self.inline(before)], dim=1))


class CollaboratingClassifier(nn.Module):
    """A trained classifier up to its pooled feature, frozen, then an exit that trains."""

    def __init__(self, trained: Classifier, num_classes: int, first: bool) -> None:
        super().__init__()
        width = trained.linear.in_features
        trained.add_module("linear", nn.Identity())
        self.reads = trained
        self.exit = CollaboratingExit(width, num_classes, first)

    def forward(self, feature: Tensor, before: Tensor | None) -> Tensor:
        return self.exit(self.reads(feature), before)


class ImtaNet(MultiExitNet):
    """A trained net, frozen to the bit (its batch-norms keep their running statistics), with new collaborating exits.

    What trains sees only pooled features: `seen` gives them once an image, and `head` goes on from there.
    """

    def __init__(self, trained: MultiExitNet, num_classes: int) -> None:
        """trained: the phase-1 net; its blocks and classifiers become this net's own."""
        old = [cast(Classifier, classifier) for classifier in trained.classifiers]
        teacher = old[-1].linear
        new = [CollaboratingClassifier(classifier, num_classes, k == 0) for k, classifier in enumerate(old)]
        super().__init__(trained.stem, trained.blocks, new, trained.batch_norm)
        self.teacher = teacher  # of no exit: distillation alone reads it
        for part in self._frozen():
            part.requires_grad_(False)
        self.train()

    def read(self, k: int, feature: Tensor, before: Tensor | None) -> Tensor:
        return self.classifiers[k](feature, before)

    @torch.no_grad()
    def seen(self, images: Tensor) -> Tensor:
        """[n, sum of widths + C]: the pooled features of exits 1..K, then the logits of the phase-1 net's last exit."""
        features = self.stem(images)
        pooled: list[Tensor] = []
        for block, classifier in self._pairs():
            features = block(features)
            pooled.append(classifier.reads(features[-1]))
        return torch.cat([*pooled, self.teacher(pooled[-1])], dim=1)

    def head(self) -> ImtaHead:
        """What trains, as a net of its own; its modules stay this net's."""
        return ImtaHead([classifier.exit for _, classifier in self._pairs()])

    def source_name(self, name: str) -> str | None:
        """Of an entry of this net's state: its name in the phase-1 net; None for one that phase 2 adds."""
        if name.startswith("teacher."):
            return name.replace("teacher", f"classifiers.{self.num_exits - 1}.linear", 1)
        if ".exit." in name:
            return None
        return name.replace(".reads.", ".", 1) if name.startswith("classifiers.") else name

    def train(self, mode: bool = True) -> ImtaNet:
        """As for every module, for what trains; what is frozen stays in evaluation mode."""
        super().train(mode)
        for part in self._frozen() if hasattr(self, "teacher") else ():
            part.eval()
        return self

    def _pairs(self) -> list[tuple[nn.Module, CollaboratingClassifier]]:
        return [(block, cast(CollaboratingClassifier, classifier)) for block, classifier in self.stages()]

    def _frozen(self) -> list[nn.Module]:
        return [self.stem, self.blocks, self.teacher, *(classifier.reads for _, classifier in self._pairs())]


class ImtaHead(nn.Module):
    """What ImtaNet.seen gives [n, sum of widths + C] -> K logits [n, C]."""

    def __init__(self, exits: list[CollaboratingExit]) -> None:
        super().__init__()
        self.exits = nn.ModuleList(exits)
        self.widths = [one.width for one in exits]

    def forward(self, seen: Tensor) -> list[Tensor]:
        logits: list[Tensor] = []
        pooled = seen[:, : sum(self.widths)].split(self.widths, dim=1)
        for one, feature in zip(self.exits, pooled, strict=True):
            logits.append(one(feature, logits[-1] if logits else None))
        return logits

    def taught(self, seen: Tensor) -> Tensor:
        """[n, C] logits of the phase-1 net's last exit."""
        return seen[:, sum(self.widths) :]
