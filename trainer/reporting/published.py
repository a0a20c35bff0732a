"""The figures that the papers print: what a report and the cost table show beside ours.

Source: Learning to Weight Samples for Dynamic Early-exiting Networks (ECCV 2022) and its supplementary material, as
METHOD.md sections 4 and 5 list them. Nets that no cost or accuracy is printed for are absent here.
"""

from __future__ import annotations

from dataclasses import dataclass

BASELINE = "-baseline"


@dataclass(frozen=True)
class PublishedCosts:
    """Cumulative cost of exits 1..K as printed, in millions of parameters and billions of multiply-adds."""

    params_m: tuple[float, ...] | None
    mul_adds_g: tuple[float, ...] | None


@dataclass(frozen=True)
class PublishedAccuracy:
    """Top-1 accuracy in percent of exits 1..K (anytime), after so many epochs."""

    top1: tuple[float, ...]
    epochs: int


# METHOD.md section 4. CIFAR is printed in millions: 6.86 14.35 27.54 41.71 58.48.
COSTS = {
    "imagenet-msdnet-step4": PublishedCosts((4.24, 8.77, 13.07, 16.75, 23.96), (0.34, 0.69, 1.01, 1.25, 1.36)),
    "imagenet-msdnet-step6": PublishedCosts((4.24, 10.78, 17.84, 24.58, 38.68), (0.34, 0.92, 1.52, 1.99, 2.19)),
    "imagenet-msdnet-step7": PublishedCosts((4.24, 11.89, 20.58, 29.16, 47.54), (0.34, 1.06, 1.81, 2.42, 2.68)),
    "cifar100-msdnet-5exits": PublishedCosts(None, (0.00686, 0.01435, 0.02754, 0.04171, 0.05848)),
}

# METHOD.md section 5, ImageNet (100 epochs) and CIFAR-100 (300 epochs, weight net 1x500 where weighted).
ACCURACY = {
    "imagenet-msdnet-step4-baseline": PublishedAccuracy((59.00, 66.78, 70.12, 71.42, 72.90), 100),
    "imagenet-msdnet-step4": PublishedAccuracy((59.54, 67.22, 71.03, 72.33, 73.93), 100),
    "imagenet-msdnet-step6-baseline": PublishedAccuracy((58.69, 68.75, 72.35, 73.59, 74.63), 100),
    "imagenet-msdnet-step6": PublishedAccuracy((60.05, 69.13, 73.33, 75.19, 76.30), 100),
    "imagenet-msdnet-step7-baseline": PublishedAccuracy((58.81, 69.45, 73.18, 74.32, 75.35), 100),
    "imagenet-msdnet-step7": PublishedAccuracy((59.24, 69.65, 73.94, 75.66, 76.72), 100),
    "cifar100-msdnet-5exits-baseline": PublishedAccuracy((61.12, 63.60, 69.00, 71.32, 72.51), 300),
    "cifar100-msdnet-5exits": PublishedAccuracy((62.61, 65.71, 69.14, 72.12, 73.36), 300),
}

# METHOD.md section 5: the authors' longer ImageNet runs with label smoothing 0.1.
LABEL_SMOOTHING = {
    "imagenet-msdnet-step4": PublishedAccuracy((61.64, 67.89, 71.61, 73.82, 75.03), 300),
    "imagenet-msdnet-step6": PublishedAccuracy((61.41, 70.70, 74.38, 75.80, 76.66), 300),
    "imagenet-msdnet-step7": PublishedAccuracy((60.94, 71.88, 75.13, 76.03, 76.82), 300),
}

# METHOD.md section 5: CIFAR-100, 5 exits, by the weight net's (depth, width).
WEIGHT_NET_ABLATION = {
    (1, 10): PublishedAccuracy((62.06, 65.28, 70.19, 71.47, 72.77), 300),
    (1, 100): PublishedAccuracy((63.10, 66.21, 69.36, 71.66, 72.98), 300),
    (1, 500): PublishedAccuracy((62.61, 65.71, 69.14, 72.12, 73.36), 300),
    (1, 1000): PublishedAccuracy((63.06, 66.07, 68.60, 72.10, 73.25), 300),
    (2, 500): PublishedAccuracy((62.95, 65.88, 69.17, 71.56, 73.18), 300),
    (4, 500): PublishedAccuracy((63.13, 66.09, 69.41, 71.96, 73.06), 300),
}


def published_costs(recipe: str) -> PublishedCosts | None:
    """What the paper prints for a recipe's net (weighted and baseline cost the same), or None."""
    return COSTS.get(recipe.removesuffix(BASELINE))


def published_accuracy(recipe: str, label_smoothing: bool = False) -> PublishedAccuracy | None:
    """What the paper prints for a recipe, or for its long run with label smoothing; None where it prints nothing."""
    return (LABEL_SMOOTHING if label_smoothing else ACCURACY).get(recipe)
