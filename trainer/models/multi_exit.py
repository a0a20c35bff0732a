"""A net with K exits: a stem, then K blocks that hand features on, each with a classifier at its end."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from trainer.models.equilibrium import Equilibrium
from trainer.models.recompute import recomputed


class MultiExitNet(nn.Module):
    """Images [B, 3, H, W] -> K logit tensors [B, classes].

    stem        images -> list of features
    blocks      list of features -> list of features; the last one of the list is what the block's exit reads
    classifiers feature -> logits
    equilibrium gradients of every block are rescaled while training (METHOD: IMTA, phase 1)
    """

    def __init__(
        self,
        stem: nn.Module,
        blocks: Iterable[nn.Module],
        classifiers: Iterable[nn.Module],
        batch_norm: str = "batch",
        equilibrium: bool = False,
    ) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.classifiers = nn.ModuleList(classifiers)
        self.batch_norm = batch_norm
        self.recompute = False  # blocks compute their activations again in the backward pass, instead of keeping them
        assert len(self.blocks) == len(self.classifiers)
        self.equilibrium = Equilibrium(len(self.blocks)) if equilibrium else None
        self.train()

    @property
    def num_exits(self) -> int:
        return len(self.blocks)

    def stages(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """The K pairs (block, classifier)."""
        return zip(self.blocks, self.classifiers, strict=True)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.stem(images)
        logits: list[Tensor] = []
        for k in range(self.num_exits):
            features, here = self.step(k, features, logits[-1] if logits else None)
            logits.append(here)
        return logits

    def step(self, k: int, features: list[Tensor], before: Tensor | None = None) -> tuple[list[Tensor], Tensor]:
        """Block k (from 0) and its exit: (features that go on, logits [n, classes]). The walk may stop after any exit.

        features  of net.stem(images), then of the step before; each tensor has the batch as its first dimension, and
                  samples that left may be taken out of all of them
        before    the same samples' logits at exit k - 1: exits that collaborate read them, others do not
        """
        block = self.blocks[k]
        keeps = not self.recompute or not torch.is_grad_enabled()
        features = block(features) if keeps else recomputed(block, features)
        if self.equilibrium is None:
            return features, self.read(k, features[-1], before)
        coarsest = self.equilibrium.at_exit[k](features[-1])
        logits = self.read(k, coarsest, before)
        return [*features[:-1], self.equilibrium.onward[k](coarsest)], logits

    def read(self, k: int, feature: Tensor, before: Tensor | None) -> Tensor:
        """What exit k (from 0) says of the feature that block k ends in."""
        return self.classifiers[k](feature)

    def train(self, mode: bool = True) -> MultiExitNet:
        """As for every module; with batch_norm "running", batch-norms stay on their running statistics."""
        super().train(mode)
        if self.batch_norm == "running":
            for module in self.modules():
                if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                    module.eval()
        return self

    def unread_parameters(self, image_size: int) -> list[str]:
        """Names of parameters that move no exit's logits: the last block's coarse scales, where a short net has some.

        Traced on images [2, 3, image_size, image_size] of the meta device, which computes nothing.
        """
        traced = copy.deepcopy(self).to("meta")
        named = dict(traced.named_parameters())
        images = torch.empty(2, 3, image_size, image_size, device="meta", dtype=next(iter(named.values())).dtype)
        total = torch.stack([logits.sum() for logits in traced(images)]).sum()
        gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True)
        return [name for name, gradient in zip(named, gradients, strict=True) if gradient is None]
