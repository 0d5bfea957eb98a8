# SPDX-License-Identifier: BSD-3-Clause
"""A picture of the picked images, each beside where the network is unsure."""

import math
from collections.abc import Iterable

import numpy as np
from PIL import Image

from maskattn_kernels.segmentation.prediction.panels import heat_picture, stacked, tile, tile_row
from maskattn_kernels.segmentation.results import Segmentation

__all__ = ["SHOWN", "draw_sheet"]

SHOWN = 48  # images in a picture
PAIRS = 3  # in a row
TIE = math.log(4)  # entropy of four equally probable classes: the brightest colour


def draw_sheet(picked: Iterable[Segmentation]) -> Image.Image:
    """Draw each picked image, and beside it the same with its entropy as heat.

    Args:
        picked: that have been measured; only the picture of each is kept.
    """
    tiles = []
    for found in picked:
        entropy = np.clip(found.measured.entropy / TIE, 0, 1)
        mean = f"entropy {found.measured.statistics['entropy']:.2f}"
        image = tile(found.image)
        tiles += [(f"{found.place + 1}. {found.name}", image), (mean, heat_picture(image, entropy))]
    across = 2 * PAIRS
    return stacked([tile_row(tiles[i : i + across]) for i in range(0, len(tiles), across)])
