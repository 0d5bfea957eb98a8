# SPDX-License-Identifier: BSD-3-Clause
"""Label maps as pictures, and the legend of their colours."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from maskattn_kernels.segmentation.data.fonts import font
from maskattn_kernels.segmentation.data.sample import VOID, Classes

__all__ = ["INK", "PAPER", "grey_levels", "legend", "overlay"]

INK, PAPER = (34, 40, 49), (255, 255, 255)


def grey_levels(image: np.ndarray) -> np.ndarray:
    """The brightness of an image uint8 (H,W,3) as float32 (H,W,1), 0 to 255."""
    return np.asarray(Image.fromarray(image).convert("L"), dtype=np.float32)[..., None]


def overlay(
    image: np.ndarray, semantic: np.ndarray, instance: np.ndarray, classes: Classes
) -> np.ndarray:
    """Colours of the classes over the image, with a line around every object.

    Args:
        image: uint8 (H,W,3).
        semantic: (H,W), class numbers or `VOID`, which stays uncoloured.
        instance: (H,W), 0 = no object.
        classes: gives the colours.

    Returns:
        uint8 (H,W,3).
    """
    palette = np.zeros((256, 3), dtype=np.float32)
    palette[: len(classes)] = classes.colors
    known = (semantic != VOID)[..., None]
    mixed = np.where(known, 0.4 * grey_levels(image) + 0.6 * palette[semantic], image)
    edge = np.zeros(instance.shape, dtype=bool)
    edge[:, 1:] |= instance[:, 1:] != instance[:, :-1]
    edge[1:] |= instance[1:] != instance[:-1]
    mixed[edge] = 255
    return mixed.astype(np.uint8)


def legend(entries: Sequence[tuple[str, tuple[int, int, int]]], width: int) -> Image.Image:
    """Texts behind boxes of their colours, in as many rows as a picture of this width needs.

    Args:
        entries: text and RGB colour, 0 to 255.
        width: in pixels.
    """
    line, left, top = 22, 0, 0
    places = []
    for text, color in entries:
        needed = round(font(14, text).getlength(text)) + 38
        if left and left + needed > width:
            left, top = 0, top + line
        places.append((left, top, text, color))
        left += needed
    picture = Image.new("RGB", (width, top + line), PAPER)
    draw = ImageDraw.Draw(picture)
    for left, top, text, color in places:
        draw.rectangle((left, top + 4, left + 14, top + 18), fill=tuple(color), outline=INK)
        draw.text((left + 20, top + 2), text, fill=INK, font=font(14, text))
    return picture
