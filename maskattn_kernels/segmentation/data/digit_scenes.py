# SPDX-License-Identifier: BSD-3-Clause
"""Digit scenes: handwritten digits on slips of paper as things, textures and photographs as stuff.

The digits are scikit-learn's (the test set of UCI's "Optical Recognition of Handwritten Digits"),
the pictures scikit-image's; both come with the packages, nothing is downloaded. A scene of 128 x
128 pixels has three to five regions of different stuff with wavy borders; three to eight slips of
light paper of any size and shape, each with a digit in dark ink, that hide parts of each other; and
scratches and blots of any colour that belong to no object. Train and val share no digit and no
pixel of a picture. Labels are those of the pixel on top: an object is its paper, its class the
digit. A scene depends on (seed, split, index) alone.

With a legend, the class of a slip is written elsewhere: papers have two or three colours, one slip
of each colour has a digit, and blank slips have the class of the written slip of their colour. No
patch around a blank slip shows its class.
"""

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw

from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.sample import Classes, Sample
from maskattn_kernels.segmentation.data.slips import (
    Slips,
    between,
    paint,
    split_digits,
    write_digits,
    write_legend,
)
from maskattn_kernels.segmentation.data.textures import TEXTURES, texture_pictures

__all__ = ["SIDE", "DigitScenes"]

SIDE = 128
COUNTS = {"train": 2048, "val": 256}
REGIONS = (3, 5)
#: Least difference of brightness between a scratch and what lies below, of 255.
CONTRAST = 70.0
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)

_DIGIT_COLORS = (
    (230, 25, 75),
    (60, 180, 75),
    (255, 225, 25),
    (0, 130, 200),
    (245, 130, 48),
    (145, 30, 180),
    (70, 240, 240),
    (240, 50, 230),
    (210, 245, 60),
    (0, 128, 128),
)


class DigitScenes:
    """Generated scenes with semantic and instance labels; the set that needs no download.

    Args:
        split: "train" or "val".
        count: scenes; None = 2048 to train and 256 to validate.
        seed: of all scenes. Scene i of a seed and split is the same whatever the count.
        textures: "plain", or "shifted": other colours, less contrast and a blur in all stuff.
        legend: whether one slip of each colour shows the class of the blank ones.

    Raises:
        DataError: an option that is not as above.

    Example:
        >>> scene = DigitScenes("val")[0]
        >>> scene.image.shape, scene.semantic.shape, int(scene.instance.max()) >= 3
        ((128, 128, 3), (128, 128), True)
    """

    classes = Classes(
        names=(*(f"digit {digit}" for digit in range(10)), *(t.name for t in TEXTURES)),
        is_thing=(True,) * 10 + (False,) * len(TEXTURES),
        colors=(*_DIGIT_COLORS, *(texture.color for texture in TEXTURES)),
        ids=tuple(range(10 + len(TEXTURES))),
    )

    def __init__(
        self,
        split: str = "train",
        count: int | None = None,
        seed: int = 0,
        textures: str = "plain",
        legend: bool = False,
    ) -> None:
        if split not in COUNTS:
            raise DataError(f"split: expected train or val for digit-scenes, got {split!r}")
        if textures not in ("plain", "shifted"):
            raise DataError(f"textures: expected plain or shifted, got {textures!r}")
        if not isinstance(legend, bool):
            raise DataError(f"legend: expected true or false, got {legend!r}")
        for name, value, least in (("count", count, 1), ("seed", seed, 0)):
            if value is not None and (not isinstance(value, int) or value < least):
                raise DataError(f"{name}: expected a whole number from {least}, got {value!r}")
        self.split = split
        self.count = COUNTS[split] if count is None else count
        self.seed = seed
        self.legend = legend
        self._stuff = texture_pictures(split, textures == "shifted")
        self._digits = split_digits(split)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.count:
            raise IndexError(f"index: expected 0 to {self.count - 1}, got {index}")
        key = (self.seed, list(COUNTS).index(self.split), index)
        rng = np.random.Generator(np.random.PCG64(key))
        image, semantic = _background(rng, self._stuff)
        _scratches(rng, image)
        instance = np.zeros((SIDE, SIDE), dtype=np.int32)
        write = write_legend if self.legend else write_digits
        write(rng, self._digits, Slips(image, semantic, instance))
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        return Sample(f"{self.split}-{index:05d}", pixels, semantic, instance)


@lru_cache(maxsize=1)
def _waves() -> np.ndarray:
    """Smooth random fields (8, 2*SIDE, 2*SIDE), about -1 to 1; crops of them bend borders."""
    rng = np.random.Generator(np.random.PCG64(1))
    coarse = rng.uniform(-1.5, 1.5, (8, 12, 12)).astype(np.float32)
    side = (2 * SIDE, 2 * SIDE)
    fine = [Image.fromarray(f).resize(side, Image.Resampling.BICUBIC) for f in coarse]
    return np.stack([np.asarray(f) for f in fine])


_ROWS, _COLUMNS = np.mgrid[:SIDE, :SIDE].astype(np.float32)


def _background(
    rng: np.random.Generator, stuff: tuple[tuple[np.ndarray, ...], ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Regions of different stuff: float32 (SIDE,SIDE,3) image and uint8 (SIDE,SIDE) classes."""
    count = int(rng.integers(REGIONS[0], REGIONS[1] + 1))
    kinds = rng.permutation(len(stuff))[:count]
    region = _regions(rng, count)
    image = np.empty((SIDE, SIDE), dtype=np.uint32)
    for number, kind in enumerate(kinds):
        picture = stuff[kind][int(rng.integers(len(stuff[kind])))]
        top = int(rng.integers(picture.shape[0] - SIDE + 1))
        left = int(rng.integers(picture.shape[1] - SIDE + 1))
        crop = picture[top : top + SIDE, left : left + SIDE]
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        np.copyto(image, crop, where=region == number)
    light = 0.7 + 0.5 * rng.random((count, 1), dtype=np.float32)
    tint = 0.8 + 0.4 * rng.random((count, 3), dtype=np.float32)
    semantic = np.take((10 + kinds).astype(np.uint8), region)
    pixels = image.view(np.uint8).reshape(SIDE, SIDE, 4)[..., :3]
    return pixels * np.take(light * tint, region, axis=0), semantic


def _regions(rng: np.random.Generator, count: int) -> np.ndarray:
    """The number (SIDE,SIDE) of the nearest of some random points; borders are wavy."""
    waves = _waves()
    bent = []
    for axis in (_ROWS, _COLUMNS):
        field = waves[int(rng.integers(len(waves)))]
        top, left = rng.integers(SIDE, size=2)
        bent.append(axis + 12 * field[top : top + SIDE, left : left + SIDE])
    points = rng.uniform(0, SIDE, (count, 2)).astype(np.float32)
    region = np.zeros((SIDE, SIDE), dtype=np.intp)
    nearest = np.full((SIDE, SIDE), np.inf, dtype=np.float32)
    for number, (y, x) in enumerate(points):
        distance = (bent[0] - y) ** 2 + (bent[1] - x) ** 2
        region[distance < nearest] = number
        np.minimum(nearest, distance, out=nearest)
    return region


def _ink(rng: np.random.Generator, below: np.ndarray) -> np.ndarray:
    """A random colour that can be seen on top of the pixels `below` (H,W,3)."""
    level = float((below[::2, ::2] @ _LUMA).mean())
    # Always as many random numbers: what follows must not depend on the pixels.
    for color in rng.integers(0, 256, (4, 3)).astype(np.float32):
        if abs(float(color @ _LUMA) - level) >= CONTRAST:
            return color
    return np.full(3, 0 if level > 127 else 255, dtype=np.float32)


def _scratches(rng: np.random.Generator, image: np.ndarray) -> None:
    """Long thin lines and blots of ink: marks that are no digits and leave the labels alone."""
    for _ in range(int(rng.integers(0, 4))):
        layer = Image.new("L", (SIDE, SIDE))
        draw = ImageDraw.Draw(layer)
        x, y = rng.uniform(0, SIDE, 2)
        if rng.random() < 0.5:
            angle, reach = between(rng, 0, np.pi), between(rng, 40, 90)
            dx, dy = reach * np.cos(angle), reach * np.sin(angle)
            draw.line((x - dx, y - dy, x + dx, y + dy), fill=230, width=int(rng.integers(2, 4)))
        else:
            radius = between(rng, 2, 5)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=230)
        box = layer.getbbox()
        if box is not None:
            place = np.s_[box[1] : box[3], box[0] : box[2]]
            paint(image[place], np.asarray(layer)[place] / np.float32(255), _ink(rng, image[place]))
