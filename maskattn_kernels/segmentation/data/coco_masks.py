# SPDX-License-Identifier: BSD-3-Clause
"""The shapes of a COCO annotation: polygons, run lengths and boxes, checked, then drawn.

Nothing unchecked reaches pycocotools, whose C code reads foreign memory or fills the machine's on
coordinates and run lengths that do not fit the image.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from maskattn_kernels.segmentation.data.errors import shown

__all__ = ["Box", "Polygons", "Runs", "Shape", "box", "outline"]

FAR = 4
"""Coordinates of more than so many times the longer side of the image are refused."""
_LARGEST_SIDE = 1_000_000
_POLYGON = "[x, y, x, y, ..] in pixels"


@dataclass(frozen=True, slots=True)
class _Drawn:
    """What lies between the coordinates ``left``, ``top`` and ``right``, ``bottom``."""

    left: float
    top: float
    right: float
    bottom: float

    def check(self, height: int, width: int) -> None:
        """Raise ValueError for coordinates that belong to no image of ``height`` x ``width``."""
        most = FAR * max(height, width)
        for value in (self.left, self.top, self.right, self.bottom):
            if abs(value) > most:
                raise ValueError(
                    f"lies far outside of its image of {width} x {height} (coordinate "
                    f"{value:.6g}); expected pixels"
                )

    def outside(self, height: int, width: int) -> bool:
        """Whether nothing of it lies in an image of ``height`` x ``width``."""
        return self.right <= 0 or self.bottom <= 0 or self.left >= width or self.top >= height

    def within(self, side: int) -> bool:
        """Whether all coordinates are from 0 to ``side``: 1 for fractions, 100 for percent."""
        return min(self.left, self.top) >= 0 and max(self.right, self.bottom) <= side


@dataclass(frozen=True, slots=True)
class Polygons(_Drawn):
    """Polygons of at least three points.

    ``parts`` are float64 arrays of x, y, x, y, ..; the least and largest coordinates of all are
    ``left``, ``top``, ``right`` and ``bottom``.
    """

    parts: tuple[np.ndarray, ...]

    def draw(self, height: int, width: int) -> np.ndarray:
        """The pixels inside in an image of ``height`` x ``width``, bool (H,W)."""
        records = coco_mask.frPyObjects(list(self.parts), height, width)
        return coco_mask.decode(coco_mask.merge(records)).astype(bool)


@dataclass(frozen=True, slots=True)
class Box(_Drawn):
    """The rectangle from ``left``, ``top`` to ``right``, ``bottom``."""

    def draw(self, height: int, width: int) -> np.ndarray:
        """The pixels that it touches in an image of ``height`` x ``width``, bool (H,W)."""
        mask = np.zeros((height, width), dtype=bool)
        rows = slice(max(0, int(self.top)), max(0, int(np.ceil(self.bottom))))
        mask[rows, max(0, int(self.left)) : max(0, int(np.ceil(self.right)))] = True
        return mask


@dataclass(frozen=True, slots=True)
class Runs:
    """Run ``lengths`` down the columns, the first one of pixels outside; their sum is the size.

    They are for an image of ``height`` x ``width``.
    """

    height: int
    width: int
    lengths: np.ndarray

    def check(self, height: int, width: int) -> None:
        """Raise ValueError for an image that is not of ``height`` x ``width``."""
        if (self.height, self.width) != (height, width):
            raise ValueError(
                f"is of {self.width} x {self.height} pixels, its image of {width} x {height}"
            )

    def outside(self, height: int, width: int) -> bool:
        """Whether they mark no pixel of an image of ``height`` x ``width``."""
        return not self.lengths[1::2].any()

    def within(self, side: int) -> bool:
        """Never, whatever the ``side``: runs are pixels, not coordinates."""
        return False

    def draw(self, height: int, width: int) -> np.ndarray:
        """The pixels inside in an image of ``height`` x ``width``, bool (H,W)."""
        inside = np.arange(len(self.lengths)) % 2 == 1
        return np.repeat(inside, self.lengths).reshape(self.width, self.height).T


Shape = Polygons | Runs | Box


def outline(value: Any) -> Polygons | Runs | None:
    """The ``segmentation`` of an annotation, ``value``; None = there is none, or it has no area.

    Parts of fewer than three points are left out. A polygon may be given as one list, or as a list
    of points.

    Raises:
        ValueError: any other form, coordinates that are not finite, or runs that do not cover
            exactly the image that they are for.

    Example:
        >>> outline([[0, 0, 2, 0, 2, 2, 0, 2]]).draw(2, 3).astype(int).tolist()
        [[1, 1, 0], [1, 1, 0]]
        >>> outline({"size": [2, 3], "counts": [2, 1, 3]}).draw(2, 3).astype(int).tolist()
        [[0, 1, 0], [0, 0, 0]]
    """
    if value in (None, [], {}, ""):
        return None
    if isinstance(value, dict):
        return _runs(value)
    if not isinstance(value, list):
        raise ValueError(f"expected polygons {_POLYGON}, or run lengths; got {shown(value)}")
    flat = not isinstance(value[0], list)
    if flat or all(isinstance(point, list) and len(point) == 2 for point in value):
        value = [value]  # one polygon, as numbers or as points
    parts = [part for part in map(_points, value) if len(part) >= 6]
    if not parts:
        return None
    xs, ys = (np.concatenate([part[start::2] for part in parts]) for start in (0, 1))
    left, top, right, bottom = (float(side) for side in (xs.min(), ys.min(), xs.max(), ys.max()))
    return Polygons(left, top, right, bottom, tuple(parts))


def box(value: Any) -> Box | None:
    """The ``bbox`` of an annotation, ``value``: [x, y, width, height]; None = none, or empty.

    Raises:
        ValueError: another form, or numbers that are not finite.
    """
    if value is None or value == []:
        return None
    left, top, width, height = _numbers(value, "bbox", 4).tolist()
    return Box(left, top, left + width, top + height) if min(width, height) > 0 else None


def _points(part: Any) -> np.ndarray:
    points = _numbers(part, "a polygon")
    if len(points) % 2:
        raise ValueError(f"a polygon of {len(points)} numbers; expected {_POLYGON}")
    return points


def _numbers(value: Any, what: str, count: int | None = None) -> np.ndarray:
    try:
        numbers = np.asarray(value)
    except ValueError:  # lists of different lengths
        numbers = np.asarray(None)
    if numbers.ndim == 2 and numbers.shape[1] == 2:
        numbers = numbers.ravel()
    good = numbers.ndim == 1 and (numbers.dtype.kind in "iuf" or numbers.size == 0)
    if not good or (count is not None and len(numbers) != count):
        expected = _POLYGON if count is None else f"{count} numbers"
        raise ValueError(f"{what}: expected {expected}, got {shown(value)}")
    numbers = numbers.astype(np.float64)
    if not np.isfinite(numbers).all():
        raise ValueError(f"{what}: a number that is not finite")
    return numbers


def _runs(value: dict[str, Any]) -> Runs:
    size, counts = value.get("size"), value.get("counts")
    sides = _numbers(size, "size", 2)
    if not ((sides >= 1) & (sides <= _LARGEST_SIDE) & (sides == sides.round())).all():
        raise ValueError(f"size: expected the image's height and width, got {shown(size)}")
    height, width = (int(side) for side in sides)
    if isinstance(counts, str):
        lengths = _unpacked(counts)
    else:
        lengths = _numbers(counts, "counts")
    pixels = height * width
    if not ((lengths >= 0) & (lengths <= pixels) & (lengths == np.round(lengths))).all():
        raise ValueError(f"counts: expected whole numbers from 0 to {pixels}")
    if lengths.sum() != pixels:
        raise ValueError(
            f"its run lengths cover {int(lengths.sum())} of the {pixels} pixels of {width} x "
            f"{height}"
        )
    return Runs(height, width, lengths.astype(np.int64))


def _unpacked(text: str) -> np.ndarray:
    """COCO's packed run lengths: 5 bits a character, and from the third on as differences."""
    codes = np.frombuffer(text.encode("utf-8"), dtype=np.uint8).astype(np.int64) - 48
    last = codes & 32 == 0
    if not len(codes) or codes.min() < 0 or codes.max() > 63 or not last[-1]:
        raise ValueError(f"counts: expected COCO's packed run lengths, got {shown(text)}")
    ends = np.flatnonzero(last)
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(len(codes)) - np.repeat(starts, ends - starts + 1)
    if places.max() > 6:
        raise ValueError("counts: a run length of more than 32 bits")
    values = np.add.reduceat((codes & 31) << 5 * places, starts)
    negative = codes[ends] & 16 > 0
    values -= np.where(negative, 1 << 5 * (places[ends] + 1), 0)
    for start in (1, 2):
        values[start::2] = np.cumsum(values[start::2])
    return values
