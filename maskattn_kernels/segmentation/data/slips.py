# SPDX-License-Identifier: BSD-3-Clause
"""Slips of paper with handwritten digits, laid into a scene: the things of `DigitScenes`."""

from colorsys import hsv_to_rgb
from functools import lru_cache

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

__all__ = ["Slips", "between", "paint", "split_digits", "write_digits", "write_legend"]

DIGITS = (3, 8)
SIDES = (16, 48)
VAL_SHARE = 0.2
#: A slip is not laid where it would leave less than this share of another one visible.
IN_SIGHT = 0.6
#: Lowest and highest value of each colour channel.
PAPER, INK = (190.0, 255.0), (0.0, 90.0)
#: With a legend: colours of paper, blank slips, and the least side of a written one.
HUES, BLANK, LEGIBLE = (2, 3), (3, 5), 28
#: Places tried for a blank slip.
TRIES = 12
_MARGIN = 1  # empty pixels around an 8 x 8 digit, so that strokes end softly inside the picture
_WRITTEN = 0.95  # the picture of the digit, by the side of its slip

#: For each of the ten digits, pictures of handwritten samples.
_Digits = tuple[tuple[Image.Image, ...], ...]


@lru_cache(maxsize=2)
def split_digits(split: str) -> _Digits:
    """The handwritten samples of a split: for each of the ten digits, pictures of its samples."""
    numbers = _digit_numbers(split)
    images, targets = load_digits(return_X_y=True)
    by_digit: list[list[Image.Image]] = [[] for _ in range(10)]
    for number in numbers:
        ink = np.pad(images[number].reshape(8, 8) / 16 * 255, _MARGIN).astype(np.uint8)
        by_digit[targets[number]].append(Image.fromarray(ink))
    return tuple(tuple(pictures) for pictures in by_digit)


def _digit_numbers(split: str) -> np.ndarray:
    """Which of scikit-learn's samples belong to a split."""
    order = np.random.Generator(np.random.PCG64(0)).permutation(len(load_digits().target))
    cut = round(VAL_SHARE * len(order))
    return order[:cut] if split == "val" else order[cut:]


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A number from ``low`` to ``high``, drawn from ``rng``."""
    return low + (high - low) * float(rng.random())


def paint(image: np.ndarray, cover: np.ndarray, color: np.ndarray) -> None:
    """Lay a ``color`` over an ``image``, in place, as strongly as ``cover`` (0 to 1) says."""
    image += cover[..., None] * (color - image)


class Slips:
    """Lays slips into a scene, in place, each over those before it.

    Args:
        image: float32 (H,W,3), square.
        semantic: uint8 (H,W), gets the digit of each slip.
        instance: int32 (H,W), gets their numbers, from 1.
    """

    def __init__(self, image: np.ndarray, semantic: np.ndarray, instance: np.ndarray) -> None:
        self.image, self.semantic, self.instance = image, semantic, instance
        # By instance number; that of the ground, 0, may vanish.
        self.seen = [0]  # pixels still in sight
        self.needed = [float("-inf")]  # pixels that must stay in sight

    def __len__(self) -> int:
        return len(self.seen) - 1

    def lay(
        self,
        rng: np.random.Generator,
        slip: tuple[np.ndarray, np.ndarray],
        digit: int,
        color: np.ndarray | None = None,
        in_sight: float = IN_SIGHT,
    ) -> bool:
        """Lay a slip somewhere, unless too little of another one would stay in sight there.

        Args:
            rng: draws the place and the shades.
            slip: how much paper and ink cover each pixel of it.
            digit: its class.
            color: of the paper; None = any light one.
            in_sight: share of this slip that later ones must leave in sight.
        """
        paper, ink = slip
        side = len(paper)
        top, left = rng.integers(0, len(self.image) - side + 1, size=2)
        place = np.s_[top : top + side, left : left + side]
        solid = paper > 0.5
        hidden = np.bincount(self.instance[place][solid], minlength=len(self.seen)).tolist()
        seen = [before - now for before, now in zip(self.seen, hidden, strict=True)]
        if any(pixels < least for pixels, least in zip(seen, self.needed, strict=True)):
            return False
        paint(self.image[place], paper, _shade(rng, PAPER) if color is None else color)
        paint(self.image[place], ink, _shade(rng, INK))
        self.semantic[place][solid] = digit
        self.instance[place][solid] = len(self.seen)
        area = int(solid.sum())
        self.seen = [*seen, area]
        self.needed.append(in_sight * area)
        return True


def _shade(rng: np.random.Generator, limits: tuple[float, float]) -> np.ndarray:
    low, high = limits
    return low + (high - low) * rng.random(3, dtype=np.float32)


def write_digits(rng: np.random.Generator, digits: _Digits, slips: Slips) -> None:
    """Lay three to eight of ``slips``, each with one of ``digits``, as ``rng`` draws them."""
    wanted = int(rng.integers(DIGITS[0], DIGITS[1] + 1))
    digit = int(rng.integers(10))
    for _ in range(4 * wanted):
        if len(slips) == wanted:
            break
        if rng.random() < 0.7:  # otherwise the same digit once more, in another hand
            digit = int(rng.integers(10))
        slips.lay(rng, _slip(rng, _any(rng, digits[digit])), digit)


def write_legend(rng: np.random.Generator, digits: _Digits, slips: Slips) -> None:
    """Lay ``slips`` of a few colours: one of each has one of ``digits``, the others are blank.

    The class of a blank slip is the digit on the written slip of its colour, which nothing covers.
    ``rng`` draws everything.
    """
    count = int(rng.integers(HUES[0], HUES[1] + 1))
    hue, legend = rng.random(), rng.permutation(10)[:count]
    blanks = int(rng.integers(BLANK[0], BLANK[1] + 1))

    def lay(entry: int, *, blank: bool) -> bool:
        digit = int(legend[entry])
        paper, ink = _slip(rng, _any(rng, digits[digit]), SIDES[0] if blank else LEGIBLE)
        shade = hsv_to_rgb(
            (hue + entry / count + between(rng, -0.02, 0.02)) % 1, 0.5, between(rng, 0.85, 1.0)
        )
        slip = (paper, np.zeros_like(ink) if blank else ink)
        color = np.array(shade, dtype=np.float32) * 255
        return slips.lay(rng, slip, digit, color, in_sight=IN_SIGHT if blank else 1.0)

    for entry in range(count):
        while not lay(entry, blank=False):  # another size and place
            pass
    for _ in range(blanks):
        entry = int(rng.integers(count))
        any(lay(entry, blank=True) for _ in range(TRIES))


def _any(rng: np.random.Generator, pictures: tuple[Image.Image, ...]) -> Image.Image:
    return pictures[int(rng.integers(len(pictures)))]


def _slip(
    rng: np.random.Generator, digit: Image.Image, least: int = SIDES[0]
) -> tuple[np.ndarray, np.ndarray]:
    """How much the paper and the ink of a slip cover each pixel (side, side), 0 to 1."""
    side = int(rng.integers(least, SIDES[1] + 1))
    angle, slant = between(rng, -0.25, 0.25), between(rng, -0.2, 0.2)
    cos, sin = np.cos(angle), np.sin(angle)
    turned = ((cos, sin + slant), (-sin, cos))
    middle = (side - 1) / 2
    # The digit, as the rows of `turned` say where each pixel of the slip comes from.
    step, centre = digit.width / (_WRITTEN * side), (digit.width - 1) / 2
    terms = tuple(
        term for x, y in turned for term in (step * x, step * y, centre - step * middle * (x + y))
    )
    grown = digit.transform((side, side), Image.Transform.AFFINE, terms, Image.Resampling.BICUBIC)
    soft = np.asarray(grown, dtype=np.float32) / 255
    # The sharper the larger, so that strokes have edges of about two pixels at every size.
    ink = np.clip((soft - 0.38) * side / 12 + 0.5, 0, 1)
    # The paper lies within |u|^p + |v|^p = 1: round for p = 2, nearly square for 6.
    radius, power = 0.48 * side, between(rng, 2.0, 6.0)
    along = np.arange(side) - middle
    u, v = (np.abs(x * along + y * along[:, None]) / radius for x, y in turned)
    paper = np.clip((1 - (u**power + v**power) ** (1 / power)) * radius + 0.5, 0, 1)
    return paper.astype(np.float32), (ink * paper).astype(np.float32)
