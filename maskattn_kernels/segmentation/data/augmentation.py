# SPDX-License-Identifier: BSD-3-Clause
"""From a `Sample` of any size to arrays of one size: unchanged, or augmented for training."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from maskattn_kernels.segmentation.data.sample import VOID, Sample

__all__ = ["Augmentation", "Square", "fit"]

_GREY = 124  # what lies outside of an image, near the mean of photographs


@dataclass(frozen=True)
class Square:
    """A sample at S x S pixels.

    Attributes:
        image: uint8 (S,S,3).
        semantic: uint8 (S,S), class numbers or `VOID`.
        instance: int32 (S,S), 0 = no object.
    """

    image: np.ndarray
    semantic: np.ndarray
    instance: np.ndarray


def fit(sample: Sample, size: int) -> Square:
    """The whole sample at size x size: the image antialiased bilinear, labels nearest.

    A sample without labels comes out all `VOID`.

    Example:
        >>> from maskattn_kernels.segmentation.data.digit_scenes import DigitScenes
        >>> fit(DigitScenes("val")[0], 64).image.shape
        (64, 64, 3)
    """
    height, width = sample.image.shape[:2]
    return _cut(sample, (0.0, 0.0, float(width), float(height)), (size, size))


@dataclass(frozen=True)
class Augmentation:
    """Random zoom, place, mirroring, brightness and contrast: cheap, and enough for few labels.

    Attributes:
        zoom: least and largest; above 1 a part of the image fills the square, below 1 the image
            lies in a frame of `VOID`.
        mirror: whether left and right may change places (not for digits: a mirrored 2 is not a 2).
        light: brightness and contrast change by up to this share.
    """

    zoom: tuple[float, float] = (0.8, 1.3)
    mirror: bool = True
    light: float = 0.25

    def __call__(self, sample: Sample, size: int, rng: np.random.Generator) -> Square:
        """A sample at size x size; the same for the same state of `rng`."""
        square = self._zoomed(sample, size, rng)
        mirrored = self.mirror and rng.random() < 0.5
        gain = 1 + self.light * (2 * rng.random() - 1)
        contrast = 1 + self.light * (2 * rng.random() - 1)
        level = float(square.image.mean(dtype=np.float32))
        curve = gain * (level + contrast * (np.arange(256) - level))
        image = np.take(np.clip(curve, 0, 255).astype(np.uint8), square.image)
        step = np.s_[:, ::-1] if mirrored else np.s_[:, :]
        return Square(image[step], square.semantic[step], square.instance[step])

    def _zoomed(self, sample: Sample, size: int, rng: np.random.Generator) -> Square:
        zoom = self.zoom[0] * (self.zoom[1] / self.zoom[0]) ** float(rng.random())
        down, along = float(rng.random()), float(rng.random())
        height, width = sample.image.shape[:2]
        if zoom >= 1:
            top, left = down * height * (1 - 1 / zoom), along * width * (1 - 1 / zoom)
            box = (left, top, left + width / zoom, top + height / zoom)
            return _cut(sample, box, (size, size))
        side = max(1, round(zoom * size))
        top, left = round(down * (size - side)), round(along * (size - side))
        place = np.s_[top : top + side, left : left + side]
        small = _cut(sample, (0.0, 0.0, float(width), float(height)), (side, side))
        square = Square(
            np.full((size, size, 3), _GREY, dtype=np.uint8),
            np.full((size, size), VOID, dtype=np.uint8),
            np.zeros((size, size), dtype=np.int32),
        )
        square.image[place] = small.image
        square.semantic[place] = small.semantic
        square.instance[place] = small.instance
        return square


def _cut(sample: Sample, box: tuple[float, float, float, float], size: tuple[int, int]) -> Square:
    """The part `box` (left, top, right, bottom) of a sample, resized to `size` (height, width)."""
    height, width = sample.image.shape[:2]
    left, top, right, bottom = box
    rows = _nearest(top, bottom, size[0], height)
    columns = _nearest(left, right, size[1], width)
    image = sample.image
    if (height, width) != size or box != (0, 0, width, height):
        resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR, box)
        image = np.asarray(resized)
    void = np.full(size, VOID, dtype=np.uint8)
    semantic = void if sample.semantic is None else sample.semantic[rows].take(columns, axis=1)
    none = np.zeros(size, dtype=np.int32)
    instance = none if sample.instance is None else sample.instance[rows].take(columns, axis=1)
    return Square(image, semantic, instance)


def _nearest(low: float, high: float, count: int, limit: int) -> np.ndarray:
    """Which source pixel lies under the middle of each of `count` target pixels."""
    middles = low + (np.arange(count) + 0.5) * (high - low) / count
    return np.clip(middles.astype(np.intp), 0, limit - 1)
