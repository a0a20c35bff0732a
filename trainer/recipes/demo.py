"""A few minutes on two CPU cores: real photographs, a small net, learned sample weights."""

from __future__ import annotations

from dataloading.config import IMAGENET_MEAN, IMAGENET_STD, DataConfig
from trainer.config import Config
from trainer.learning.meta_gradient import MetaConfig
from trainer.learning.optim import OptimConfig
from trainer.learning.sample_weights import SampleWeightsConfig
from trainer.models.config import ModelConfig
from trainer.models.weight_net import WeightNetConfig
from trainer.run.schedule import RunConfig


def demo() -> Config:
    """A 4-exit MSDNet on 48-pixel crops of 14 photographs; 2 to 4 minutes on 2 CPU cores.

    earlybird train demo
    Validation crops come from regions that no training crop touches; chance is 7 %. Expect 80 to 90 %.
    """
    return Config(
        recipe="",
        model=ModelConfig(
            num_exits=4, base=2, step=1, step_mode="even", first_channels=8, growth=4, classifier_channels=32
        ),
        data=DataConfig(
            source="demo",
            augmentation="imagenet",
            image_size=48,
            resize_size=54,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
            heldout=0.1,
        ),
        optim=OptimConfig(update_batch=64, base_lr=0.1, base_batch=64),
        sample_weights=SampleWeightsConfig(epsilon=0.8, centre="col"),
        weight_net=WeightNetConfig(depth=1, width=100),
        meta=MetaConfig(interval=4, ratio=0.75, lr=1e-3),
        run=RunConfig(epochs=6, evaluate_every=2, log_every=10),
    )
