# SPDX-License-Identifier: BSD-3-Clause
"""Random changes of an image's colours and sharpness: tables, one small matrix, and a blur."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

__all__ = ["Colors"]

#: Luma and two axes of colour, of RGB (the YIQ of NTSC): hue turns around luma, which stays.
_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


@dataclass(frozen=True)
class Colors:
    """How far the colours of a training image may change; each change is drawn uniformly.

    A change of 0 draws nothing, so the others stay as they are without it.

    Attributes:
        light: brightness and contrast change by up to this share.
        gamma: levels, 0 to 1, are raised to a power from exp(-gamma) to exp(gamma).
        saturation: changes by up to this share.
        hue: turns by up to this part of a full turn, 0 to 0.5.
        blur: the radius of a Gaussian blur is up to so many pixels.
        noise: the standard deviation of noise is up to so many of 255 levels.
    """

    light: float = 0.25
    gamma: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    blur: float = 0.0
    noise: float = 0.0

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The image with other colours.

        Args:
            image: uint8 (H,W,3).
            rng: for the draws.

        Example:
            >>> image = np.full((2, 2, 3), 100, np.uint8)
            >>> Colors(light=0.5)(image, np.random.default_rng(0))[0, 0].tolist()
            [114, 114, 114]
        """
        image = np.take(self._levels(image, rng), image)
        if self.saturation or self.hue:
            image = _bytes(image @ self._matrix(rng).T)
        if self.blur:
            radius = self.blur * rng.random()
            blurred = Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius))
            image = np.asarray(blurred)
        if self.noise:
            deviation = np.float32(self.noise * rng.random())
            image = _bytes(image + deviation * rng.standard_normal(image.shape, dtype=np.float32))
        return image

    def _levels(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """uint8 (256,), what each level becomes."""
        gain = 1 + self.light * _drawn(rng)
        contrast = 1 + self.light * _drawn(rng)
        level = float(image.mean(dtype=np.float32))
        levels = np.arange(256.0)
        if self.gamma:
            levels = 255 * (levels / 255) ** np.exp(self.gamma * _drawn(rng))
        return _bytes(gain * (level + contrast * (levels - level)))

    def _matrix(self, rng: np.random.Generator) -> np.ndarray:
        """float32 (3,3), what colours are multiplied by."""
        gain = 1 + self.saturation * _drawn(rng)
        turn = 2 * np.pi * self.hue * _drawn(rng)
        along, across = gain * np.cos(turn), gain * np.sin(turn)
        turned = np.array([[1, 0, 0], [0, along, -across], [0, across, along]])
        return (np.linalg.inv(_YIQ) @ turned @ _YIQ).astype(np.float32)


def _drawn(rng: np.random.Generator) -> float:
    """From -1 to 1."""
    return 2 * rng.random() - 1


def _bytes(levels: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(levels, 0, 255)).astype(np.uint8)
