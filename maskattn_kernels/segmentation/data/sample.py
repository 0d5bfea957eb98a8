# SPDX-License-Identifier: BSD-3-Clause
"""What every data set gives and every metric takes: `Classes`, and `Sample`s of labelled images."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from maskattn_kernels.segmentation.data.errors import shown

__all__ = ["VOID", "Classes", "Sample", "SegmentationDataset", "numbers_from_ids"]

VOID = 255
"""The class of pixels that have none: ignored by losses and metrics."""


LARGEST_ID = 2**31


def _is_id(value: object) -> bool:
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    return whole and 0 <= int(value) < LARGEST_ID  # type: ignore[call-overload]


@dataclass(frozen=True)
class Classes:
    """The classes of a data set; a class's number in label maps is its place in these tuples.

    Attributes:
        names: for people.
        is_thing: whether its objects are counted one by one (car), or not (sky).
        colors: RGB, 0 to 255, for pictures.
        ids: what the data set's own files call the class (a COCO category id, a grey value).
        void_ids: what they call pixels of no class; may be empty.

    Raises:
        TypeError, ValueError: a tuple is of another length or holds values of another kind, or a
            name or an id occurs twice.

    Example:
        >>> from maskattn_kernels.segmentation import Classes
        >>> classes = Classes(("sky", "car"), (False, True), ((0, 0, 255), (255, 0, 0)), (0, 1))
        >>> len(classes), classes.things
        (2, (1,))
    """

    names: tuple[str, ...]
    is_thing: tuple[bool, ...]
    colors: tuple[tuple[int, int, int], ...]
    ids: tuple[int, ...]
    void_ids: tuple[int, ...] = (VOID,)

    def __post_init__(self) -> None:
        count = len(self.names)
        if not 1 <= count <= VOID:
            raise ValueError(f"names: expected 1 to {VOID} classes, got {count}")
        for field in ("is_thing", "colors", "ids"):
            if len(getattr(self, field)) != count:
                got = len(getattr(self, field))
                raise ValueError(f"{field}: expected {count} entries, one a name, got {got}")
        if not all(isinstance(name, str) for name in self.names):
            raise TypeError("names: expected texts")
        if not all(isinstance(thing, bool | np.bool_) for thing in self.is_thing):
            raise TypeError("is_thing: expected True or False for each class")
        if not all(_is_id(there) for there in (*self.ids, *self.void_ids)):
            raise ValueError(f"ids, void_ids: expected whole numbers from 0 below {LARGEST_ID}")
        for color in self.colors:
            if len(color) != 3 or not all(_is_id(level) and level <= 255 for level in color):
                raise ValueError(f"colors: expected RGB from 0 to 255, got {shown(color)}")
        for field in ("names", "ids"):
            values = getattr(self, field)
            if len({*values}) != count:
                twice = next(value for value in values if values.count(value) > 1)
                raise ValueError(f"{field}: {shown(twice)} occurs twice")

    def __len__(self) -> int:
        return len(self.names)

    @property
    def things(self) -> tuple[int, ...]:
        """Numbers of the classes whose objects are counted."""
        return tuple(number for number, thing in enumerate(self.is_thing) if thing)

    @property
    def number_of(self) -> dict[int, int]:
        """The class number, or `VOID`, of each id that the data set's own files may hold."""
        return dict.fromkeys(self.void_ids, VOID) | {there: n for n, there in enumerate(self.ids)}

    def to_ids(self, labels: np.ndarray) -> np.ndarray:
        """Class numbers as the ids of the data set's own files, which its tools and readers expect.

        Args:
            labels: class numbers or `VOID`, in any shape.

        Returns:
            the ids, uint8, or wider where one of `ids` is above 255, in the shape of ``labels``.
            `VOID` becomes the first of `void_ids`; if there are none, the largest number of the
            type, or the largest below it, that is the id of no class.

        Example:
            >>> classes = Classes(("a", "b"), (False, True), ((0, 0, 9), (9, 0, 0)), (7, 26), (0,))
            >>> classes.to_ids(np.array([[0, 1, VOID]]))
            array([[ 7, 26,  0]], dtype=uint8)
        """
        void = self.void_ids[:1]
        kind = np.min_scalar_type(max((*self.ids, *void)))
        largest = np.iinfo(kind).max
        table = np.empty(VOID + 1, dtype=kind)
        table[:] = void[0] if void else max({*range(largest - VOID, largest + 1)} - {*self.ids})
        table[: len(self)] = self.ids
        return table[labels]

    def from_ids(self, values: np.ndarray) -> np.ndarray:
        """The reverse of `to_ids`: ids ``values`` as class numbers or `VOID`, uint8.

        Raises:
            ValueError: ids that are neither of a class nor void.

        Example:
            >>> classes = Classes(("a", "b"), (False, True), ((0, 0, 9), (9, 0, 0)), (7, 26), (0,))
            >>> classes.from_ids(np.array([[7, 26, 0]]))
            array([[  0,   1, 255]], dtype=uint8)
        """
        return numbers_from_ids(values, self.number_of)

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


def numbers_from_ids(values: np.ndarray, number_of: Mapping[int, int]) -> np.ndarray:
    """Ids as class numbers or `VOID`, uint8.

    Args:
        values: whole numbers, in any shape.
        number_of: the class number, or `VOID`, of each id that may occur.

    Raises:
        ValueError: ids that are not in ``number_of``.
    """
    present, places = np.unique(values, return_inverse=True)
    unknown = [int(value) for value in present if int(value) not in number_of]
    if unknown:
        shown = ", ".join(map(str, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        raise ValueError(f"unknown id {shown}")
    table = np.array([number_of[int(value)] for value in present], dtype=np.uint8)
    return table[places.reshape(values.shape)]


@dataclass(frozen=True)
class Sample:
    """One image with its labels, at its own size H x W.

    Attributes:
        name: unique within its set; the file's name without its ending.
        image: uint8 (H,W,3), RGB.
        semantic: uint8 (H,W), class numbers or `VOID`; None where there are no labels.
        instance: int32 (H,W), 0 = no object, else the number of an object, unique within the image;
            None where the data set has no objects.
        file: that holds the image, and no other; None = there is no such file.

    Example:
        >>> import numpy as np
        >>> from maskattn_kernels.segmentation import VOID, Sample
        >>> image = np.zeros((24, 32, 3), np.uint8)
        >>> sample = Sample("street", image, semantic=np.full((24, 32), VOID, np.uint8))
        >>> sample.instance is None
        True
    """

    name: str
    image: np.ndarray
    semantic: np.ndarray | None = None
    instance: np.ndarray | None = None
    file: Path | None = None


@runtime_checkable
class SegmentationDataset(Protocol):
    """A map-style data set of `Sample`s: what `evaluate` takes.

    Example:
        >>> import numpy as np
        >>> from maskattn_kernels.segmentation import Classes, Sample, SegmentationDataset
        >>> class Night:
        ...     classes = Classes(("sky",), (False,), ((0, 0, 40),), (0,))
        ...
        ...     def __len__(self):
        ...         return 1
        ...
        ...     def __getitem__(self, index):
        ...         return Sample("sky", np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8))
        >>> isinstance(Night(), SegmentationDataset)
        True
    """

    classes: Classes

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...
