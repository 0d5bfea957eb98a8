# SPDX-License-Identifier: BSD-3-Clause
"""How many pixels of each class the training images have; weights of classes and images by that."""

from collections.abc import Sequence

import numpy as np

from maskattn_kernels.common.background import map_ahead
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.sample import VOID, SegmentationDataset

__all__ = ["balanced_weights", "class_pixels", "image_weights"]

_THREADS = 4
#: A class counts in an image from this share of its labelled pixels on: not for a few pixels.
_SEEN = 0.001
#: An image is drawn at most so many times as often as another.
_MOST = 10


def class_pixels(
    samples: SegmentationDataset, numbers: Sequence[int] | np.ndarray | None = None
) -> np.ndarray:
    """Pixels of each class in each image, int64 (images, classes); void ones are left out.

    Args:
        samples: a labelled set; each image is read once, in threads.
        numbers: of the images; None = all.

    Raises:
        DataError: an image cannot be read.

    Example:
        >>> from maskattn_kernels.segmentation import open_dataset
        >>> class_pixels(open_dataset("digit-scenes", count=3)).shape
        (3, 18)
    """

    def count(number: int) -> np.ndarray:
        semantic = samples[int(number)].semantic
        labels = np.empty(0, dtype=np.uint8) if semantic is None else semantic.ravel()
        return np.bincount(labels, minlength=VOID + 1)[: len(samples.classes)]

    chosen = range(len(samples)) if numbers is None else numbers
    return np.stack(list(map_ahead(count, chosen, _THREADS)))


def balanced_weights(pixels: np.ndarray) -> list[float]:
    """A weight for each class: 1 / sqrt(its share of the pixels), 1 in the mean over all pixels.

    That is half of the way, in logarithms, from equal weights of all pixels to equal weights of all
    classes. A class without a pixel has weight 1.

    Args:
        pixels: of each class, (classes,) whole numbers.

    Example:
        >>> [round(weight, 3) for weight in balanced_weights(np.array([90, 10, 0]))]
        [0.833, 2.5, 1.0]
    """
    weights = np.ones(len(pixels))
    seen = pixels > 0
    share = pixels[seen] / pixels.sum()
    weights[seen] = share**-0.5 / np.sqrt(share).sum()
    return weights.tolist()


def image_weights(pixels: np.ndarray) -> np.ndarray:
    """How often each image should be drawn, relative to others: float64 (images,).

    That is 1 / sqrt(share of the pixels) of its rarest class with at least a thousandth of its
    pixels; at most ten times the lowest weight, and 0 for an image without a labelled pixel.

    Args:
        pixels: by `class_pixels`.

    Raises:
        DataError: no image has a labelled pixel.

    Example:
        >>> image_weights(np.array([[75, 0], [0, 25], [0, 0]])).round(3)
        array([1.155, 2.   , 0.   ])
    """
    total = pixels.sum(1, keepdims=True)
    if not total.any():
        raise DataError("balance: no training image has a labelled pixel")
    share = pixels.sum(0) / pixels.sum()
    rarity = np.maximum(share, 1e-300) ** -0.5  # of a class without a pixel it is never used
    seen = (total > 0) & (pixels >= _SEEN * total)
    weights = np.where(seen, rarity, 0).max(1)
    return np.minimum(weights, _MOST * weights[weights > 0].min())
