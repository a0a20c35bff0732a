"""Settings of the data path, group `data`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR10_MEAN, CIFAR10_STD = (0.4914, 0.4824, 0.4467), (0.2471, 0.2435, 0.2616)
CIFAR100_MEAN, CIFAR100_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)


# What fits no machine of today: refused before memory is asked for it.
MOST = {"image_size": 16_384, "resize_size": 65_536, "padding": 16_384, "num_threads": 4096, "prefetch": 4096}
MOST |= {"synthetic_images": 100_000_000, "synthetic_classes": 1_000_000}


@dataclass(frozen=True)
class DataConfig:
    """From files on disk to a batch on the device.

    path           folder, archive or prepared set; "" means the recipe's own (demo, synthetic)
    source         how to read `path`: auto looks at what is there
    loader         dali | torchvision | synthetic (random pixels already on the device)
    decode         where DALI decodes JPEG: cpu | gpu | auto (on a CUDA device the faster one, by a short measurement
                   at the start; else cpu). On a CUDA device resizing and cropping run there either way
    hardware_decoder_load  share of the images that the GPU's JPEG unit decodes, where it has one (A100 and later). 0,
                   since nvJPEG 12.4 hands that unit its work at once, whatever is still queued in the stream: it may
                   write into memory that is being read. Where `pytest -m gpu tests/dataloading` passes, 0.65 is a start
    augmentation   imagenet: random resized crop (area 0.08..1, ratio 3/4..4/3) and flip; cifar: pad and crop, flip
    image_size     side of the training and evaluation image, pixels
    resize_size    short side before the evaluation centre crop, pixels (imagenet augmentation only)
    padding        pixels added on each side before the random crop (cifar augmentation only)
    heldout        images kept out of training to set thresholds and choose ratios: a share (< 1) or a number
    long_tail_mu   class c keeps N_c * mu^c of its N_c training images, held-out ones not counted; 0 = off
    imbalance_factor  largest over smallest class, another way to give mu: IF^(-1/(C-1)); 0 = off
    num_threads    decoding threads per rank, 0 = the cores this process may use, divided by the node's ranks
    prefetch       batches prepared ahead of the one in use
    """

    path: str = ""
    source: Literal["auto", "demo", "synthetic"] = "auto"
    loader: Literal["dali", "torchvision"] = "dali"
    decode: Literal["auto", "cpu", "gpu"] = "auto"
    hardware_decoder_load: float = 0.0
    augmentation: Literal["imagenet", "cifar"] = "imagenet"
    image_size: int = 224
    resize_size: int = 256
    padding: int = 4
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    heldout: float = 50_000 / 1_281_167
    long_tail_mu: float = 0.0
    imbalance_factor: float = 0.0
    num_threads: int = 0
    prefetch: int = 2
    synthetic_images: int = 10_000
    synthetic_classes: int = 10

    def __post_init__(self) -> None:
        if self.path and self.source != "auto":
            raise ValueError(
                f"data.path is {self.path!r}, but data.source {self.source} does not read it; set data.source=auto"
            )
        _at_least("data.image_size", self.image_size, 8)
        _at_least("data.resize_size", self.resize_size, self.image_size if self.augmentation == "imagenet" else 1)
        _at_least("data.padding", self.padding, 0)
        _at_least("data.num_threads", self.num_threads, 0)
        _at_least("data.prefetch", self.prefetch, 1)
        for name, most in MOST.items():
            if getattr(self, name) > most:
                raise ValueError(f"data.{name} is {getattr(self, name)}; it must be at most {most}")
        _at_least("data.synthetic_images", self.synthetic_images, 2)
        _at_least("data.synthetic_classes", self.synthetic_classes, 2)
        if not 0 <= self.hardware_decoder_load <= 1:
            raise ValueError(f"data.hardware_decoder_load is {self.hardware_decoder_load}; it is a share, 0 to 1")
        if self.heldout < 0:
            raise ValueError(f"data.heldout is {self.heldout}; give a share below 1 or a number of images")
        if not 0 <= self.long_tail_mu < 1:
            raise ValueError(f"data.long_tail_mu is {self.long_tail_mu}; it must lie in [0, 1), 0 turns it off")
        if self.imbalance_factor and self.imbalance_factor < 1:
            raise ValueError(f"data.imbalance_factor is {self.imbalance_factor}; it must be at least 1, 0 turns it off")
        if self.imbalance_factor and self.long_tail_mu:
            raise ValueError("data.long_tail_mu and data.imbalance_factor both set; set one of them to 0")
        if any(value <= 0 for value in self.std):
            raise ValueError(f"data.std is {self.std}; every value must be positive")


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} is {value}; it must be at least {least}")
