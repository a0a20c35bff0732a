"""The figures of the papers and of their authors' program: what a report and the cost tables show beside ours.

Source: Learning to Weight Samples for Dynamic Early-exiting Networks (ECCV 2022) and its supplementary material, as
METHOD.md sections 4 and 5 list them; of costs that it does not print, what the authors' program counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

BASELINE = "-baseline"
PUBLISHED, PROGRAM = "published", "authors' program"
UNITS = {"M": 1e6, "G": 1e9}
IMAGENET, CIFAR = 1_281_167, 50_000  # training images


@dataclass(frozen=True)
class NetCost:
    """One figure of a net, cumulative, at exits 1..K.

    recipe, settings  whose net it is
    source  PUBLISHED: the paper prints it; PROGRAM: the authors' public program counts it, and the paper prints nothing
    figure  "params" | "mul_adds"
    values  [K] in `unit`s (M: millions, G: billions), rounded to `digits` behind the point
    """

    recipe: str
    settings: tuple[str, ...]
    source: str
    figure: Literal["params", "mul_adds"]
    unit: Literal["M", "G"]
    digits: int
    values: tuple[float, ...]


@dataclass(frozen=True)
class PublishedAccuracy:
    """Top-1 accuracy in percent of exits 1..K (anytime), after so many epochs of a set of so many training images, with
    those held out of training."""

    top1: tuple[float, ...]
    epochs: int
    num_images: int


# METHOD.md section 4: parameters in millions, and Mul-Adds, in billions but for CIFAR, as printed.
_PARAMS_M = {
    "imagenet-msdnet-step4": (4.24, 8.77, 13.07, 16.75, 23.96),
    "imagenet-msdnet-step6": (4.24, 10.78, 17.84, 24.58, 38.68),
    "imagenet-msdnet-step7": (4.24, 11.89, 20.58, 29.16, 47.54),
}
_MUL_ADDS_G = {
    "imagenet-msdnet-step4": (0.34, 0.69, 1.01, 1.25, 1.36),
    "imagenet-msdnet-step6": (0.34, 0.92, 1.52, 1.99, 2.19),
    "imagenet-msdnet-step7": (0.34, 1.06, 1.81, 2.42, 2.68),
}
_MUL_ADDS_M = {"cifar100-msdnet-5exits": (6.86, 14.35, 27.54, 41.71, 58.48)}

# What the authors' public program counts where the paper prints nothing, in millions: no published figures.
_PROGRAM_PARAMS = {
    ("cifar100-msdnet-5exits",): (0.2997, 0.6497, 1.0183, 1.4924, 2.0789),
    ("cifar100-msdnet-7exits",): (0.2997, 0.6497, 1.1114, 1.7272, 2.385, 3.0522, 3.9667),
    ("cifar100-ranet-c1",): (0.3587, 0.8999, 1.305, 1.8007, 2.1882, 2.6173),
    ("cifar100-ranet-c2",): (0.3679, 0.9092, 1.3143, 1.81, 2.7176, 3.6858, 4.4626, 5.187),
    ("imagenet-ranet",): (8.0909, 33.3148, 42.9828, 58.9019, 63.9973, 70.8525, 78.5329, 87.9726),
    ("imagenet-msdnet-step6", "model.base=6"): (7.0767, 15.6898, 24.014, 42.1877, 56.5293),
    ("imagenet-msdnet-step7", "model.base=7"): (8.7592, 20.1549, 31.73, 41.8603, 62.3145),
}
_PROGRAM_MUL_ADDS = {
    ("cifar100-msdnet-7exits",): (6.86, 14.35, 27.291, 48.449, 76.433, 108.851, 137.281),
    ("cifar100-ranet-c1",): (8.372, 21.788, 32.879, 41.57, 53.284, 58.991),
    ("cifar100-ranet-c2",): (10.74, 24.156, 35.246, 43.938, 93.068, 114.677, 164.023, 175.744),
    ("imagenet-ranet",): (168.067, 520.465, 731.891, 903.794, 1052.252, 1118.804, 1589.014, 1680.98),
    ("imagenet-msdnet-step6", "model.base=6"): (514.662, 1171.182, 1844.515, 2501.402, 2742.059),
    ("imagenet-msdnet-step7", "model.base=7"): (615.693, 1436.392, 2283.21, 2967.421, 3253.794),
}

COSTS = (
    *(NetCost(name, (), PUBLISHED, "params", "M", 2, values) for name, values in _PARAMS_M.items()),
    *(NetCost(name, (), PUBLISHED, "mul_adds", "G", 2, values) for name, values in _MUL_ADDS_G.items()),
    *(NetCost(name, (), PUBLISHED, "mul_adds", "M", 2, values) for name, values in _MUL_ADDS_M.items()),
    *(
        NetCost(name, tuple(rest), PROGRAM, "params", "M", 4, values)
        for (name, *rest), values in _PROGRAM_PARAMS.items()
    ),
    *(
        NetCost(name, tuple(rest), PROGRAM, "mul_adds", "M", 3, values)
        for (name, *rest), values in _PROGRAM_MUL_ADDS.items()
    ),
)

# METHOD.md section 5, ImageNet (100 epochs) and CIFAR-100 (300 epochs, weight net 1x500 where weighted).
ACCURACY = {
    "imagenet-msdnet-step4-baseline": PublishedAccuracy((59.00, 66.78, 70.12, 71.42, 72.90), 100, IMAGENET),
    "imagenet-msdnet-step4": PublishedAccuracy((59.54, 67.22, 71.03, 72.33, 73.93), 100, IMAGENET),
    "imagenet-msdnet-step6-baseline": PublishedAccuracy((58.69, 68.75, 72.35, 73.59, 74.63), 100, IMAGENET),
    "imagenet-msdnet-step6": PublishedAccuracy((60.05, 69.13, 73.33, 75.19, 76.30), 100, IMAGENET),
    "imagenet-msdnet-step7-baseline": PublishedAccuracy((58.81, 69.45, 73.18, 74.32, 75.35), 100, IMAGENET),
    "imagenet-msdnet-step7": PublishedAccuracy((59.24, 69.65, 73.94, 75.66, 76.72), 100, IMAGENET),
    "cifar100-msdnet-5exits-baseline": PublishedAccuracy((61.12, 63.60, 69.00, 71.32, 72.51), 300, CIFAR),
    "cifar100-msdnet-5exits": PublishedAccuracy((62.61, 65.71, 69.14, 72.12, 73.36), 300, CIFAR),
}

# METHOD.md section 5: the authors' longer ImageNet runs with label smoothing 0.1.
LABEL_SMOOTHING = {
    "imagenet-msdnet-step4": PublishedAccuracy((61.64, 67.89, 71.61, 73.82, 75.03), 300, IMAGENET),
    "imagenet-msdnet-step6": PublishedAccuracy((61.41, 70.70, 74.38, 75.80, 76.66), 300, IMAGENET),
    "imagenet-msdnet-step7": PublishedAccuracy((60.94, 71.88, 75.13, 76.03, 76.82), 300, IMAGENET),
}

# METHOD.md section 5: CIFAR-100, 5 exits, by the weight net's (depth, width).
WEIGHT_NET_ABLATION = {
    (1, 10): PublishedAccuracy((62.06, 65.28, 70.19, 71.47, 72.77), 300, CIFAR),
    (1, 100): PublishedAccuracy((63.10, 66.21, 69.36, 71.66, 72.98), 300, CIFAR),
    (1, 500): PublishedAccuracy((62.61, 65.71, 69.14, 72.12, 73.36), 300, CIFAR),
    (1, 1000): PublishedAccuracy((63.06, 66.07, 68.60, 72.10, 73.25), 300, CIFAR),
    (2, 500): PublishedAccuracy((62.95, 65.88, 69.17, 71.56, 73.18), 300, CIFAR),
    (4, 500): PublishedAccuracy((63.13, 66.09, 69.41, 71.96, 73.06), 300, CIFAR),
}
