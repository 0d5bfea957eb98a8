# SPDX-License-Identifier: BSD-3-Clause
"""Textures and photographs inside scikit-image's wheel, cut into disjoint halves for train and val.

Nothing is downloaded. Each picture is one stuff class of the digit scenes. The left 60% of a
picture are for training, the rest for validation: no crop of one shares a pixel with the other.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import skimage
from PIL import Image, ImageFilter

from maskattn_kernels.segmentation.data.errors import DataError

__all__ = ["TEXTURES", "Texture", "texture_pictures"]

TRAIN_SHARE = 0.6
ZOOMS = (0.75, 1.0, 1.35)


@dataclass(frozen=True)
class Texture:
    """One picture as a stuff class.

    Attributes:
        name: of the class.
        file: in the folder `data` of scikit-image.
        box: left, top, right, bottom of the part that shows the class; None = all of it.
        scale: at zoom 1, pixels of ours for one of the file's.
        color: for label pictures.
    """

    name: str
    file: str
    box: tuple[int, int, int, int] | None
    scale: float
    color: tuple[int, int, int]


TEXTURES = (
    Texture("brick", "brick.png", None, 1.0, (178, 96, 72)),
    Texture("grass", "grass.png", None, 1.0, (96, 150, 70)),
    Texture("gravel", "gravel.png", None, 1.0, (128, 128, 128)),
    Texture("print", "page.png", (0, 24, 384, 191), 1.2, (235, 230, 210)),
    Texture("stars", "hubble_deep_field.jpg", None, 0.6, (24, 28, 66)),
    Texture("tissue", "ihc.png", None, 1.0, (205, 180, 150)),
    Texture("retina", "retina.jpg", (230, 230, 1180, 1180), 0.5, (214, 92, 70)),
    Texture("cat", "chelsea.png", (20, 0, 420, 300), 1.1, (224, 172, 120)),
)


@lru_cache(maxsize=8)
def texture_pictures(split: str, shifted: bool) -> tuple[tuple[np.ndarray, ...], ...]:
    """The part of every picture that belongs to a split, at several zooms.

    Args:
        split: "train" or "val".
        shifted: with other colours, less contrast and a blur, as a domain shift.

    Returns:
        for each of `TEXTURES`, one uint32 (height, width) picture per zoom. The bytes of a pixel
        are red, green, blue and one of no meaning: as one number, a pixel is quick to copy.

    Raises:
        DataError: scikit-image came without one of its pictures.

    Example:
        >>> [picture.shape for picture in texture_pictures("val", False)[0]]
        [(384, 154), (512, 205), (691, 277)]
    """
    return tuple(_zoomed(texture, split, shifted) for texture in TEXTURES)


def _zoomed(texture: Texture, split: str, shifted: bool) -> tuple[np.ndarray, ...]:
    path = Path(skimage.__file__).parent / "data" / texture.file
    try:
        with Image.open(path) as file:
            picture = file.convert("RGB")
    except OSError:
        raise DataError(f"{path}: not found or unreadable; reinstall scikit-image") from None
    if texture.box:
        picture = picture.crop(texture.box)
    cut = round(TRAIN_SHARE * picture.width)
    left, right = (0, cut) if split == "train" else (cut, picture.width)
    picture = picture.crop((left, 0, right, picture.height))
    sizes = [[round(zoom * texture.scale * side) for side in picture.size] for zoom in ZOOMS]
    zoomed = [picture.resize((w, h), Image.Resampling.LANCZOS) for w, h in sizes]
    return tuple(_words(_shift(p) if shifted else p) for p in zoomed)


def _words(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture.convert("RGBA")).view(np.uint32)[..., 0]


def _shift(picture: Image.Image) -> Image.Image:
    """Colours turned half way, 60% of the contrast, blurred: the same place, another camera."""
    red, green, blue = picture.split()
    turned = Image.blend(picture, Image.merge("RGB", (blue, red, green)), 0.5)
    blurred = turned.filter(ImageFilter.GaussianBlur(0.8))
    return blurred.point(lambda value: round(128 + 0.6 * (value - 128)))
