"""A net with K exits: a stem, then K blocks that hand features on, each with a classifier at its end."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from trainer.models.recompute import recomputed


class MultiExitNet(nn.Module):
    """Images [B, 3, H, W] -> K logit tensors [B, classes].

    stem        images -> list of features
    blocks      list of features -> list of features; the last one of the list is what the block's exit reads
    classifiers feature -> logits
    """

    def __init__(
        self, stem: nn.Module, blocks: Iterable[nn.Module], classifiers: Iterable[nn.Module], batch_norm: str = "batch"
    ) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.ModuleList(blocks)
        self.classifiers = nn.ModuleList(classifiers)
        self.batch_norm = batch_norm
        self.recompute = False  # blocks compute their activations again in the backward pass, instead of keeping them
        assert len(self.blocks) == len(self.classifiers)
        self.train()

    @property
    def num_exits(self) -> int:
        return len(self.blocks)

    def stages(self) -> Iterator[tuple[nn.Module, nn.Module]]:
        """The K pairs (block, classifier): a walk that may stop after any exit, keeping only some samples.

        features = net.stem(images); then, pair after pair: features = block(features); classifier(features[-1]).
        Every tensor of `features` has the batch as its first dimension.
        """
        return zip(self.blocks, self.classifiers, strict=True)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = self.stem(images)
        logits = []
        for block, classifier in zip(self.blocks, self.classifiers, strict=True):
            keeps = not self.recompute or not torch.is_grad_enabled()
            features = block(features) if keeps else recomputed(block, features)
            logits.append(classifier(features[-1]))
        return logits

    def train(self, mode: bool = True) -> MultiExitNet:
        """As for every module; with batch_norm "running", batch-norms stay on their running statistics."""
        super().train(mode)
        if self.batch_norm == "running":
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
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
