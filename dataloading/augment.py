"""Crops and flips as arrays: how each image becomes [image_size, image_size], a pure function of uniform draws."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dataloading.config import DataConfig

DRAWS = 24  # uniforms a sample, always: 10 attempts of (area, ratio), top, left, flip, and one to fill Philox's block
_ATTEMPTS = 10
_TOP, _LEFT, _FLIP = 20, 21, 22
_AREA = (0.08, 1.0)
_RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Geometry:
    """What is cut out of each stored image, and how it is brought to the output's size; n samples.

    crop    [n, 4] int32 (top, left, height, width) in the stored image's pixels; may reach outside it: black there
    resize  [n, 2] int32 (height, width) that the crop is resized to
    window  [n, 2] int32 (top, left) of the output inside the resized crop
    flip    [n] bool, mirrored left to right at the end
    """

    crop: np.ndarray
    resize: np.ndarray
    window: np.ndarray
    flip: np.ndarray

    def __getitem__(self, part: slice | np.ndarray) -> Geometry:
        return Geometry(self.crop[part], self.resize[part], self.window[part], self.flip[part])

    def changed(self, place: int, one: Geometry) -> Geometry:
        """A copy in which sample `place` has the only sample of `one`."""
        copy = Geometry(self.crop.copy(), self.resize.copy(), self.window.copy(), self.flip.copy())
        copy.crop[place], copy.resize[place] = one.crop[0], one.resize[0]
        copy.window[place], copy.flip[place] = one.window[0], one.flip[0]
        return copy

    def inside(self, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
        """[n, 4] int32: the part of each crop that lies in the image, all that a decoder must make; never empty."""
        start = np.clip(self.crop[:, :2], 0, np.stack([heights, widths], 1) - 1)
        end = np.minimum(self.crop[:, :2] + self.crop[:, 2:], np.stack([heights, widths], 1))
        return np.concatenate([start, np.maximum(end - start, 1)], 1).astype(np.int32)


def train_geometry(config: DataConfig, uniforms: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> Geometry:
    """The training augmentation for `uniforms` [n, DRAWS] in [0, 1) and images of heights x widths [n]."""
    heights, widths = np.maximum(heights, 1).astype(np.int64), np.maximum(widths, 1).astype(np.int64)
    if config.augmentation == "imagenet":
        crop = _random_resized_crop(uniforms, heights, widths)
    else:
        crop = _padded_crop(config, uniforms, heights, widths)
    n = len(heights)
    resize = np.full((n, 2), config.image_size, np.int32)
    return Geometry(crop, resize, np.zeros((n, 2), np.int32), uniforms[:, _FLIP] < 0.5)


def evaluation_geometry(config: DataConfig, heights: np.ndarray, widths: np.ndarray) -> Geometry:
    """imagenet: short side to resize_size, centre crop, rounded as torchvision does; cifar: the whole image."""
    heights, widths = np.maximum(heights, 1).astype(np.int64), np.maximum(widths, 1).astype(np.int64)
    n, size = len(heights), config.image_size
    crop = np.stack([np.zeros(n), np.zeros(n), heights, widths], 1).astype(np.int32)
    if config.augmentation == "cifar":
        resize = np.full((n, 2), size, np.int32)
        return Geometry(crop, resize, np.zeros((n, 2), np.int32), np.zeros(n, bool))
    short = np.minimum(heights, widths)
    resize = np.stack([config.resize_size * heights // short, config.resize_size * widths // short], 1).astype(np.int32)
    window = np.rint((resize - size) / 2).astype(np.int32)
    return Geometry(crop, resize, window, np.zeros(n, bool))


def _random_resized_crop(u: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """torchvision's rule: the first of ten (area, ratio) draws that fits, else the largest legal centre crop."""
    tries = u[:, : 2 * _ATTEMPTS].reshape(-1, _ATTEMPTS, 2)
    area = (heights * widths)[:, None] * (_AREA[0] + (_AREA[1] - _AREA[0]) * tries[:, :, 0])
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    ratio = np.exp(low + (high - low) * tries[:, :, 1])
    tried = np.rint(np.stack([np.sqrt(area / ratio), np.sqrt(area * ratio)], 2)).astype(np.int64)  # [n, tries, (h, w)]
    limits = np.stack([heights, widths], 1)
    fits = ((tried > 0) & (tried <= limits[:, None])).all(2)
    first = fits.argmax(1)
    size = tried[np.arange(len(u)), first]
    start = np.floor(u[:, [_TOP, _LEFT]] * (limits - size + 1)).astype(np.int64)

    none = ~fits.any(1)
    if none.any():
        h, w = heights[none], widths[none]
        wide, tall = w > _RATIO[1] * h, w < _RATIO[0] * h
        size[none, 0] = np.where(tall, np.rint(w / _RATIO[0]), h)
        size[none, 1] = np.where(wide, np.rint(h * _RATIO[1]), w)
        start[none] = (limits[none] - size[none]) // 2
    return np.concatenate([np.minimum(start, limits - size), size], 1).astype(np.int32)


def _padded_crop(config: DataConfig, u: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    """Pad by `padding`, crop image_size at random. An image of another size is cropped by its own size, shifted by the
    same share, and then resized: as if it had been brought to image_size before."""
    limits = np.stack([heights, widths], 1)
    shift = np.floor(u[:, [_TOP, _LEFT]] * (2 * config.padding + 1)) - config.padding
    start = np.rint(shift * limits / config.image_size).astype(np.int64)
    start = np.clip(start, 1 - limits, limits - 1)  # at least one pixel of the image
    return np.concatenate([start, limits], 1).astype(np.int32)
