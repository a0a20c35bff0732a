"""Parameters and multiply-adds up to every exit, by the papers' convention."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn

from trainer.models.build import build_model
from trainer.models.config import ModelConfig
from trainer.models.multi_exit import MultiExitNet


@dataclass(frozen=True)
class ExitCost:
    """What one image costs that runs until exit `exit` (from 1): every block and every classifier on the way."""

    exit: int
    params: int
    mul_adds: int


@dataclass
class Operations:
    """Operations of one image by kind; `total` counts each as one, as METHOD.md section 4 does.

    Batch-norm, concatenation, interpolation and convolution biases are free.
    """

    convolution: int = 0
    linear: int = 0
    linear_bias: int = 0
    relu: int = 0
    pooling: int = 0

    @property
    def total(self) -> int:
        return self.convolution + self.linear + self.linear_bias + self.relu + self.pooling

    def add(self, module: nn.Module, output: Tensor) -> None:
        """Count one call of a leaf module by its output [1, ...]."""
        if isinstance(module, nn.Conv2d):
            self.convolution += output.numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            self.linear += module.weight.numel()
            self.linear_bias += module.bias.numel()
        elif isinstance(module, nn.ReLU):
            self.relu += output.numel()
        elif isinstance(module, nn.AvgPool2d | nn.MaxPool2d):
            kernel = module.kernel_size
            assert isinstance(kernel, int)
            self.pooling += output.numel() * kernel * kernel


def exit_operations(config: ModelConfig, num_classes: int, image_size: int) -> list[Operations]:
    """Cumulative operations of one [3, image_size, image_size] image until each exit; nothing is computed."""
    return _operations(_meta_net(config, num_classes), image_size)


def _meta_net(config: ModelConfig, num_classes: int) -> MultiExitNet:
    with torch.device("meta"):
        return build_model(config, num_classes).eval()


def _operations(net: MultiExitNet, image_size: int) -> list[Operations]:
    counts = Operations()
    for module in net.modules():
        if not any(module.children()):
            module.register_forward_hook(lambda leaf, _, output: counts.add(leaf, output))
    until_exit = []
    features, logits = net.stem(torch.empty(1, 3, image_size, image_size, device="meta")), None
    for k in range(net.num_exits):
        features, logits = net.step(k, features, logits)
        until_exit.append(Operations(**vars(counts)))
    return until_exit


def exit_params(net: MultiExitNet) -> list[int]:
    """Cumulative parameters until each exit."""
    until_exit, count = [], _params(net.stem)
    for block, classifier in net.stages():
        count += _params(block) + _params(classifier)
        until_exit.append(count)
    return until_exit


def _params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def exit_costs(config: ModelConfig, num_classes: int, image_size: int) -> list[ExitCost]:
    """Cumulative parameters and multiply-adds of exits 1..K. Source of the convention: METHOD.md section 4."""
    net = _meta_net(config, num_classes)
    pairs = zip(exit_params(net), _operations(net, image_size), strict=True)
    return [ExitCost(k, count, done.total) for k, (count, done) in enumerate(pairs, start=1)]


def fvcore_costs(config: ModelConfig, num_classes: int, image_size: int) -> list[int]:
    """fvcore's count of the same net, cumulative over exits 1..K: its convolutions and linear layers.

    What ours counts beyond that is, to the digit, the ReLU, pooling and linear_bias of `exit_operations`.
    """
    net = build_model(config, num_classes).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fvcore scripts and traces by forms that torch calls deprecated
        from fvcore.nn import FlopCountAnalysis  # here: only this cross-check needs it, and it takes a second

        analysis = (
            FlopCountAnalysis(net, torch.zeros(1, 3, image_size, image_size))
            .unsupported_ops_warnings(False)
            .uncalled_modules_warnings(False)
        )
        by_module = analysis.by_module_and_operator()

    def count(name: str) -> int:
        return int(by_module[name]["conv"] + by_module[name]["linear"])

    each = [count(f"blocks.{k}") + count(f"classifiers.{k}") for k in range(net.num_exits)]
    return list(accumulate(each, initial=count("stem")))[1:]
