# SPDX-License-Identifier: BSD-3-Clause
"""The highest value around each pixel: peaks of heatmaps, and heatmaps from peaks."""

from collections.abc import Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["highest_around"]


def highest_around(x: Tensor, weights: Sequence[float]) -> Tensor:
    """The highest of the weighted values around each pixel.

    By shifts along one side and then the other: torch's pooling of a single channel takes several
    times as long on a CPU.

    Args:
        x: floating (...,H,W).
        weights: an odd number of them, above 0: of the values before, at and after a pixel, along
            each side.

    Returns:
        (...,H,W): max over dy, dx of ``weights[dy] * weights[dx] * x[y + dy, x + dx]``.

    Example:
        >>> import torch
        >>> from maskattn_kernels.segmentation.model.neighbourhood import highest_around
        >>> highest_around(torch.tensor([[0.0, 4.0, 0.0, 0.0]]), [0.5, 1, 0.5])
        tensor([[2., 4., 2., 0.]])
    """
    reach = len(weights) // 2
    for dim, padding in ((-1, (reach, reach)), (-2, (0, 0, reach, reach))):
        padded = F.pad(x, padding, value=float("-inf"))
        shifted = (padded.narrow(dim, place, x.shape[dim]) for place in range(len(weights)))
        x = reduce(
            torch.maximum,
            (part if w == 1 else w * part for w, part in zip(weights, shifted, strict=True)),
        )
    return x
