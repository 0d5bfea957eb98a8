# SPDX-License-Identifier: BSD-3-Clause
"""How many pixels of each class the training images have, and weights of classes by that."""

from collections.abc import Sequence

import numpy as np

from maskattn_kernels.common.background import map_ahead
from maskattn_kernels.segmentation.data.sample import VOID, SegmentationDataset

__all__ = ["balanced_weights", "class_pixels"]

_THREADS = 4


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

    That is half of the way from equal weights of pixels to equal weights of classes, 1 / share, by
    which networks see rare classes in too many places. A class without a pixel has weight 1.

    Args:
        pixels: of each class, (classes,) whole numbers.

    Example:
        >>> [round(weight, 3) for weight in balanced_weights(np.array([90, 10, 0]))]
        [0.791, 2.372, 1.0]
    """
    weights = np.ones(len(pixels))
    seen = pixels > 0
    share = pixels[seen] / pixels.sum()
    weights[seen] = share**-0.5 / np.sqrt(share).sum()
    return weights.tolist()
