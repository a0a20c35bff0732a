"""A net that nobody trained but whose exits are as unlike from image to image as a trained one's."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from trainer.config import Config
from trainer.models.build import build_model
from trainer.models.multi_exit import MultiExitNet

SPREAD = 3.0  # standard deviation of the logits over images and classes: some images are sure, some are not
CALIBRATION_IMAGES = 32


def noise(num_images: int, image_size: int, seed: int) -> Tensor:
    """[num_images, 3, image_size, image_size] float32 on the host, normally distributed."""
    return torch.randn(num_images, 3, image_size, image_size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def random_net(config: Config, num_classes: int, device: torch.device) -> MultiExitNet:
    """The recipe's net in evaluation mode, float32, with random weights; the same ones for the same seed.

    Its batch-norms have the statistics of noise images, so that activations neither grow nor vanish with depth. Its
    last layers are shifted and scaled so that logits of noise have mean 0 in every class and the standard deviation
    SPREAD: untouched, the confidences of all images differ by little more than rounding.
    """
    torch.manual_seed(config.seed)
    net = build_model(config.model, num_classes).to(device).eval().requires_grad_(False)
    images = noise(CALIBRATION_IMAGES, config.data.image_size, config.seed).to(device)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0  # its statistics become those of this batch
        norm.train()
    net(images)
    for norm in norms:
        norm.eval()
    features, before = net.stem(images), None
    for k, classifier in enumerate(net.classifiers):
        features, logits = net.step(k, features, before)
        last = [module for module in classifier.modules() if isinstance(module, nn.Linear)][-1]
        shift = logits.mean(dim=0)
        scale = SPREAD / (logits - shift).std().clamp(min=1e-12)
        last.weight.mul_(scale)
        last.bias.sub_(shift).mul_(scale)
        before = (logits - shift) * scale
    return net
