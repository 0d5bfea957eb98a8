# SPDX-License-Identifier: BSD-3-Clause
"""The photographs that scikit-image ships, and a mask for each that depends on what it shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import skimage.color
import skimage.data
import skimage.filters
import skimage.transform
import torch
import torch.nn.functional as F
from torch import Tensor

#: Colour photographs inside scikit-image's wheel: nothing is downloaded.
NAMES = ("astronaut", "chelsea", "coffee", "rocket")
SIDE = 128
#: Blur of the edge strength, in pixels, so that the mask covers objects and not lines.
BLUR = 2.0


@dataclass(frozen=True)
class Photograph:
    """A square photograph.

    Attributes:
        name: scikit-image's.
        pixels: (side, side, 3) float64 from 0 to 1.
        saliency: (side, side) float64: how strong the edges around a pixel are.
    """

    name: str
    pixels: np.ndarray
    saliency: np.ndarray

    def tensor(self) -> Tensor:
        """(1, 3, side, side) float32, each channel with mean 0 and deviation 1."""
        image = torch.from_numpy(self.pixels).float().permute(2, 0, 1)[None]
        deviation, mean = torch.std_mean(image, dim=(2, 3), keepdim=True)
        return (image - mean) / deviation

    def masks(self, sizes: Mapping[str, tuple[int, int]], keep: float) -> dict[str, Tensor]:
        """The ``keep`` fraction of places with the strongest edges, at each scale.

        Args:
            sizes: height and width of each scale, by its name.
            keep: fraction to select.

        Returns:
            for each scale a bool mask (1, height, width).
        """
        return {name: strongest(self.saliency, size, keep) for name, size in sizes.items()}


def load(name: str, side: int) -> Photograph:
    """A photograph of scikit-image, cut to a square and resized."""
    pixels = getattr(skimage.data, name)()
    height, width = pixels.shape[:2]
    edge = min(height, width)
    top, left = (height - edge) // 2, (width - edge) // 2
    square = pixels[top : top + edge, left : left + edge]
    small = skimage.transform.resize(square, (side, side), anti_aliasing=True)
    edges = skimage.filters.sobel(skimage.color.rgb2gray(small))
    return Photograph(name, small, skimage.filters.gaussian(edges, BLUR))


def strongest(saliency: np.ndarray, size: tuple[int, int], keep: float) -> Tensor:
    """The places of a (1, height, width) grid with the largest mean saliency, as a bool mask."""
    pooled = F.adaptive_avg_pool2d(torch.from_numpy(saliency)[None], size).flatten()
    mask = torch.zeros(pooled.shape, dtype=torch.bool)
    mask[pooled.topk(round(keep * pooled.numel())).indices] = True
    return mask.view(1, *size)
