# SPDX-License-Identifier: BSD-3-Clause
"""What every data set gives and every metric takes: `Classes`, and `Sample`s of labelled images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

__all__ = ["VOID", "Classes", "Sample", "SegmentationDataset"]

VOID = 255
"""The class of pixels that have none: ignored by losses and metrics."""


@dataclass(frozen=True)
class Classes:
    """The classes of a data set; a class's number in label maps is its place in these tuples.

    Attributes:
        names: for people.
        is_thing: whether its objects are counted one by one (car), or not (sky).
        colors: RGB, 0 to 255, for pictures.
        ids: what the data set's own files call the class (a COCO category id, a grey value).
    """

    names: tuple[str, ...]
    is_thing: tuple[bool, ...]
    colors: tuple[tuple[int, int, int], ...]
    ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def things(self) -> tuple[int, ...]:
        """Numbers of the classes whose objects are counted."""
        return tuple(number for number, thing in enumerate(self.is_thing) if thing)

    def where_things(self, semantic: np.ndarray) -> np.ndarray:
        """bool, in the shape of ``semantic`` (class numbers or `VOID`): where the class is a thing.

        Example:
            >>> classes = Classes(("sky", "car"), (False, True), ((0, 0, 255), (255, 0, 0)), (1, 2))
            >>> classes.where_things(np.array([0, 1, VOID]))
            array([False,  True, False])
        """
        table = np.zeros(VOID + 1, dtype=bool)
        table[list(self.things)] = True
        return table[semantic]


@dataclass(frozen=True)
class Sample:
    """One image with its labels, at its own size H x W.

    Attributes:
        name: unique within its set; the file's name without its ending.
        image: uint8 (H,W,3), RGB.
        semantic: uint8 (H,W), class numbers or `VOID`; None where there are no labels.
        instance: int32 (H,W), 0 = no object, else the number of an object, unique within the image;
            None where the data set has no objects.
    """

    name: str
    image: np.ndarray
    semantic: np.ndarray | None = None
    instance: np.ndarray | None = None


@runtime_checkable
class SegmentationDataset(Protocol):
    """A map-style data set of `Sample`s."""

    classes: Classes

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...
