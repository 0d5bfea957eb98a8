# SPDX-License-Identifier: BSD-3-Clause
"""Steps that all readers share: match names, map ids, check maps."""

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from maskattn_kernels.segmentation.data.errors import DataError, Tally
from maskattn_kernels.segmentation.data.images import turned_hint
from maskattn_kernels.segmentation.data.sample import VOID, Classes, Sample, numbers_from_ids

__all__ = ["labelled", "map_ids", "matched", "palette", "without_image"]

_NO_THING = "objects are left out, since their pixels are of classes that are no things"


def matched(
    images: Mapping[str, Path], labels: Collection[str], where: Path, what: str = "labels"
) -> list[str]:
    """The names of the images, each of which has labels.

    Args:
        images: image files by name.
        labels: names that have labels; those without an image are left alone.
        where: the labels are, for errors.
        what: they are.

    Raises:
        DataError: an image without labels, or no match at all.
    """
    missing = [name for name in images if name not in labels]
    if len(missing) == len(images):
        some = f", there are {sorted(labels)[0]!r} and others" if labels else ""
        raise DataError(
            f"{where}: no {what} for any of {len(images)} images; expected {missing[0]!r} with "
            f"another ending{some}"
        )
    if missing:
        raise DataError(
            f"{where}: no {what} for {len(missing)} of {len(images)} images, such as "
            f"{missing[0]!r}; add them or remove the images"
        )
    return list(images)


def without_image(
    images: Mapping[str, Path], labels: Collection[str], where: Path
) -> tuple[str, ...]:
    """A line on labels that have no image, if there are any.

    Args:
        images: image files by name.
        labels: names that have labels.
        where: the labels are.
    """
    alone = [name for name in labels if name not in images]
    return (f"{where}: {len(alone)} have no image, such as {alone[0]!r}",) if alone else ()


def map_ids(
    values: np.ndarray, number_of: Mapping[int, int], path: Path, advice: str
) -> np.ndarray:
    """File ids (H,W) as class numbers, uint8.

    Args:
        values: whole numbers.
        number_of: the class number, or `VOID`, of each id that may occur.
        path: of the file, for the error.
        advice: what to do about an unknown id.

    Raises:
        DataError: an id that is not in `number_of`.
    """
    if values.ndim != 2:
        raise DataError(
            f"{path}: expected one number a pixel (greyscale or palette), got "
            f"{values.shape[-1]} channels; save class ids, not colours"
        )
    try:
        return numbers_from_ids(values, number_of)
    except ValueError as unknown:
        raise DataError(f"{path}: {unknown}; {advice}") from None


def labelled(
    name: str,
    image: np.ndarray,
    semantic: np.ndarray,
    instance: np.ndarray | None,
    classes: Classes,
    path: Path,
    file: Path,
    tally: Tally | None = None,
) -> Sample:
    """A `Sample` whose maps fit its image; pixels without a thing class get object 0.

    Args:
        name, image, semantic, instance: of the sample; ``instance`` may be None.
        classes: of the data set; they say what a thing is.
        path: of the maps, for errors.
        file: of the image, for errors.
        tally: counts the objects that lie on classes which are no things.

    Raises:
        DataError: maps of another size.
    """
    for maps in (semantic, instance):
        if maps is not None and maps.shape != image.shape[:2]:
            (height, width), (high, wide) = maps.shape[:2], image.shape[:2]
            cure = turned_hint(file, height, width) or "; save them at the size of the image"
            raise DataError(
                f"{path}: labels of {width} x {height} pixels for an image of {wide} x {high}{cure}"
            )
    if instance is not None:
        things = classes.where_things(semantic)
        stray = instance[(instance > 0) & ~things & (semantic != VOID)]
        if tally is not None and stray.size:
            for number in np.setdiff1d(stray, instance[things]).tolist():
                tally.add(_NO_THING, f"object {number} of {path}")
        instance = np.where(things, instance, 0).astype(np.int32)
    return Sample(name, image, semantic, instance, file)


def palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """``count`` colours that differ well, as in PASCAL VOC: bits of a number, over channels.

    Example:
        >>> palette(3)
        ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    """
    colors = np.zeros((count, 3), dtype=int)
    for bit in range(8):
        for channel in range(3):
            colors[:, channel] |= ((np.arange(count) >> (3 * bit + channel)) & 1) << (7 - bit)
    return tuple((int(r), int(g), int(b)) for r, g, b in colors)
