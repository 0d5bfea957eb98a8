# SPDX-License-Identifier: BSD-3-Clause
"""Masks as COCO's packed run lengths, which all its tools read, without pycocotools."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import find_objects

__all__ = ["Outline", "outlines"]


class Outline(NamedTuple):
    """One object of an image, in COCO's terms.

    Attributes:
        number: of the object, from 1.
        segmentation: run lengths, as JSON holds them.
        area: pixels.
        bbox: left, top, width and height, in pixels.
    """

    number: int
    segmentation: dict[str, Any]
    area: int
    bbox: list[int]


def outlines(instance: np.ndarray) -> Iterator[Outline]:
    """The objects of an image, by number.

    Args:
        instance: (H,W), 0 = no object, else the number of one.

    Example:
        >>> (found,) = outlines(np.array([[0, 4, 4], [0, 0, 4]]))
        >>> found.number, found.segmentation, found.area, found.bbox
        (4, {'size': [2, 3], 'counts': '2111'}, 3, [1, 0, 2, 2])
    """
    numbers, inverse = np.unique(instance, return_inverse=True)
    places = inverse.reshape(instance.shape).astype(np.int32) + 1  # find_objects passes 0 over
    for place, window in enumerate(find_objects(places), start=1):
        number = int(numbers[place - 1])
        if number == 0:
            continue
        rows, columns = window
        mask = places[:, columns] == place
        box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
        counts = _packed(_lengths(mask, columns.start, instance.shape[1]))
        record = {"size": list(instance.shape), "counts": counts}
        yield Outline(number, record, int(np.count_nonzero(mask)), box)


def _lengths(mask: np.ndarray, left: int, width: int) -> np.ndarray:
    """Run lengths down the columns of an image of ``width``; ``mask`` begins at its ``left``."""
    height = len(mask)
    inside = np.zeros(mask.size + 2, dtype=np.int8)
    inside[1:-1] = mask.T.ravel()
    changes = np.flatnonzero(np.diff(inside)) + left * height
    lengths = np.diff(np.concatenate([[0], changes, [height * width]]))
    return lengths if lengths[-1] else lengths[:-1]


def _packed(lengths: np.ndarray) -> str:
    """5 bits a character, lowest first, a sixth bit says that more follow; from the fourth length
    on as the difference from the one two places before."""
    rest = lengths.astype(np.int64)
    rest[3:] -= lengths[1:-2]
    more, columns = np.ones(len(rest), dtype=bool), []
    while more.any():
        bits, shown = rest & 31, more
        rest >>= 5
        more = shown & np.where(bits & 16, rest != -1, rest != 0)
        columns.append(np.where(shown, bits + 32 * more + 48, 0))
    codes = np.stack(columns, axis=1).ravel()
    return codes[codes > 0].astype(np.uint8).tobytes().decode("ascii")
