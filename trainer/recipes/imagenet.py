"""MSDNet and RANet on ImageNet: 100 epochs, update batches of 2048, the weight net updated every 100 iterations."""

from __future__ import annotations

from dataloading.config import IMAGENET_MEAN, IMAGENET_STD, DataConfig
from trainer.config import Config
from trainer.learning.meta_gradient import MetaConfig
from trainer.learning.optim import OptimConfig
from trainer.learning.sample_weights import SampleWeightsConfig
from trainer.models.config import ModelConfig, msdnet_imagenet, ranet_imagenet
from trainer.run.schedule import RunConfig


def _imagenet(model: ModelConfig) -> Config:
    return Config(
        recipe="",
        model=model,
        data=DataConfig(augmentation="imagenet", image_size=224, resize_size=256, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        optim=OptimConfig(update_batch=2048, base_lr=0.1, base_batch=256),
        sample_weights=SampleWeightsConfig(epsilon=0.3, centre="mat"),
        meta=MetaConfig(interval=100, ratio=0.75),
        run=RunConfig(epochs=100),
    )


def msdnet_step4() -> Config:
    """MSDNet, 4 layers a block, 5 exits, up to 1.36 G Mul-Adds.

    torchrun --nproc-per-node=8 -m trainer train imagenet-msdnet-step4 --data /data/imagenet
    Published top-1 after 100 epochs: 59.54 67.22 71.03 72.33 73.93 (baseline 59.00 66.78 70.12 71.42 72.90).
    """
    return _imagenet(msdnet_imagenet(4))


def msdnet_step6() -> Config:
    """MSDNet, 4 then 6 layers a block, 5 exits, up to 2.19 G Mul-Adds.

    torchrun --nproc-per-node=8 -m trainer train imagenet-msdnet-step6 --data /data/imagenet
    Published top-1 after 100 epochs: 60.05 69.13 73.33 75.19 76.30 (baseline 58.69 68.75 72.35 73.59 74.63).
    """
    return _imagenet(msdnet_imagenet(6))


def msdnet_step7() -> Config:
    """MSDNet, 4 then 7 layers a block, 5 exits, up to 2.68 G Mul-Adds.

    torchrun --nproc-per-node=8 -m trainer train imagenet-msdnet-step7 --data /data/imagenet
    Published top-1 after 100 epochs: 59.24 69.65 73.94 75.66 76.72 (baseline 58.81 69.45 73.18 74.32 75.35).
    """
    return _imagenet(msdnet_imagenet(7))


def ranet() -> Config:
    """RANet, 4 sub-networks, 8 layers a block, 8 exits, up to 1.68 G Mul-Adds.

    torchrun --nproc-per-node=8 -m trainer train imagenet-ranet --data /data/imagenet
    No accuracy of this net trained with sample weights is published.
    """
    return _imagenet(ranet_imagenet())
