"""MSDNet and RANet on CIFAR-10 and CIFAR-100: 300 epochs, update batches of 512, the weight net in every iteration."""

from __future__ import annotations

from dataloading.config import CIFAR10_MEAN, CIFAR10_STD, CIFAR100_MEAN, CIFAR100_STD, DataConfig
from trainer.config import Config
from trainer.learning.meta_gradient import MetaConfig
from trainer.learning.optim import OptimConfig
from trainer.learning.sample_weights import SampleWeightsConfig
from trainer.models.config import ModelConfig, msdnet_cifar, ranet_cifar
from trainer.run.schedule import RunConfig


def _cifar(model: ModelConfig, num_classes: int) -> Config:
    mean, std = (CIFAR10_MEAN, CIFAR10_STD) if num_classes == 10 else (CIFAR100_MEAN, CIFAR100_STD)
    return Config(
        recipe="",
        model=model,
        data=DataConfig(augmentation="cifar", image_size=32, padding=4, mean=mean, std=std, heldout=0.1),
        optim=OptimConfig(update_batch=512, base_lr=0.1, base_batch=64),
        sample_weights=SampleWeightsConfig(epsilon=0.8, centre="col"),
        meta=MetaConfig(interval=1, ratio=0.75),
        run=RunConfig(epochs=300),
    )


def cifar10_msdnet_5exits() -> Config:
    """MSDNet, depth 15, 5 exits, up to 58 M Mul-Adds.

    earlybird train cifar10-msdnet-5exits --data cifar-10-python.tar.gz
    """
    return _cifar(msdnet_cifar(5), 10)


def cifar10_msdnet_7exits() -> Config:
    """MSDNet, depth 28, 7 exits, up to 137 M Mul-Adds.

    earlybird train cifar10-msdnet-7exits --data cifar-10-python.tar.gz
    """
    return _cifar(msdnet_cifar(7), 10)


def cifar100_msdnet_5exits() -> Config:
    """MSDNet, depth 15, 5 exits, up to 58 M Mul-Adds.

    earlybird train cifar100-msdnet-5exits --data cifar-100-python.tar.gz
    Published top-1 after 300 epochs: 62.61 65.71 69.14 72.12 73.36 (baseline 61.12 63.60 69.00 71.32 72.51).
    """
    return _cifar(msdnet_cifar(5), 100)


def cifar100_msdnet_7exits() -> Config:
    """MSDNet, depth 28, 7 exits, up to 137 M Mul-Adds.

    earlybird train cifar100-msdnet-7exits --data cifar-100-python.tar.gz
    """
    return _cifar(msdnet_cifar(7), 100)


def cifar10_ranet_c1() -> Config:
    """RANet Model-C-1, 6 exits, up to 59 M Mul-Adds.

    earlybird train cifar10-ranet-c1 --data cifar-10-python.tar.gz
    """
    return _cifar(ranet_cifar("c1"), 10)


def cifar10_ranet_c2() -> Config:
    """RANet Model-C-2, 8 exits, up to 176 M Mul-Adds.

    earlybird train cifar10-ranet-c2 --data cifar-10-python.tar.gz
    """
    return _cifar(ranet_cifar("c2"), 10)


def cifar100_ranet_c1() -> Config:
    """RANet Model-C-1, 6 exits, up to 59 M Mul-Adds.

    earlybird train cifar100-ranet-c1 --data cifar-100-python.tar.gz
    """
    return _cifar(ranet_cifar("c1"), 100)


def cifar100_ranet_c2() -> Config:
    """RANet Model-C-2, 8 exits, up to 176 M Mul-Adds.

    earlybird train cifar100-ranet-c2 --data cifar-100-python.tar.gz
    """
    return _cifar(ranet_cifar("c2"), 100)
