"""From a model's configuration to the net."""

from __future__ import annotations

from trainer.models.blocks import initialise
from trainer.models.config import ModelConfig
from trainer.models.imta import ImtaNet
from trainer.models.msdnet import msdnet
from trainer.models.multi_exit import MultiExitNet
from trainer.models.ranet import ranet


def build_model(config: ModelConfig, num_classes: int) -> MultiExitNet:
    """The initialised net; `num_classes` is the data's, which config.num_classes must equal unless it is 0."""
    if num_classes < 1:
        raise ValueError(f"the data has {num_classes} classes; at least 1 is needed")
    if config.num_classes not in (0, num_classes):
        raise ValueError(
            f"model.num_classes is {config.num_classes}, but the data has {num_classes}; "
            "set model.num_classes=0 to follow the data"
        )
    net = (msdnet if config.net == "msdnet" else ranet)(config, num_classes)
    if config.imta == "finetune":
        net = ImtaNet(net, num_classes)
    initialise(net)
    return net
