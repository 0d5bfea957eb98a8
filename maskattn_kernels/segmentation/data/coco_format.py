# SPDX-License-Identifier: BSD-3-Clause
"""COCO's panoptic format: label maps as segments and back, and the list of categories.

Source: https://cocodataset.org/#format-data.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.ndimage import find_objects

from maskattn_kernels.segmentation.data.sample import VOID, Classes

__all__ = [
    "categories",
    "ids_from_rgb",
    "labels_from_segments",
    "rgb_from_ids",
    "segments_of",
]


def rgb_from_ids(ids: np.ndarray) -> np.ndarray:
    """Segment ids (H,W) below 2**24 as the colours uint8 (H,W,3) of a panoptic PNG."""
    return np.stack([ids & 255, (ids >> 8) & 255, (ids >> 16) & 255], axis=-1).astype(np.uint8)


def ids_from_rgb(colors: np.ndarray) -> np.ndarray:
    """The reverse of `rgb_from_ids`: the ids int32 (H,W) of ``colors``.

    Example:
        >>> ids = np.array([[0, 255, 256, 70000]])
        >>> ids_from_rgb(rgb_from_ids(ids)).tolist()
        [[0, 255, 256, 70000]]
    """
    red, green, blue = np.moveaxis(colors[..., :3].astype(np.int32), -1, 0)
    return red + 256 * green + 65536 * blue


def categories(classes: Classes) -> list[dict[str, Any]]:
    """The list ``categories`` of a COCO JSON, of ``classes``."""
    return [
        {"id": number, "name": name, "isthing": int(thing), "color": list(color)}
        for number, name, thing, color in zip(
            classes.ids, classes.names, classes.is_thing, classes.colors, strict=True
        )
    ]


def segments_of(
    semantic: np.ndarray,
    instance: np.ndarray,
    classes: Classes,
    scores: Sequence[float] | None = None,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Cut label maps into COCO's segments: each object one, the rest one for each class.

    Void gets no segment. Pixels of a thing class that belong to no object, as a network without
    objects gives them, are one segment without a score: no pixel that has a class is lost.

    Args:
        semantic: (H,W), class numbers or `VOID`.
        instance: (H,W), 0 = no object.
        classes: of the numbers.
        scores: of the objects 1, 2, ...; kept as ``score`` of their segments.

    Returns:
        int32 (H,W) ids from 1, 0 = no segment; and the list ``segments_info``.
    """
    objects = np.where(classes.where_things(semantic), instance, 0).astype(np.int64)
    key = np.where(semantic != VOID, semantic + 256 * (objects + 1), 0)
    keys, ids = np.unique(key, return_inverse=True)
    if keys[0] != 0:
        keys, ids = np.concatenate([[0], keys]), ids + 1
    ids = ids.reshape(semantic.shape).astype(np.int32)
    areas = np.bincount(ids.ravel(), minlength=len(keys)).tolist()
    segments = []
    for number, (rows, columns) in enumerate(find_objects(ids), start=1):
        category, instance_number = int(keys[number]) % 256, int(keys[number]) // 256 - 1
        box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
        segment = {"id": number, "category_id": classes.ids[category], "area": areas[number]}
        segments.append({**segment, "bbox": box, "iscrowd": 0})
        if scores is not None and instance_number > 0:
            segments[-1]["score"] = float(scores[instance_number - 1])
    return ids, segments


def labels_from_segments(
    ids: np.ndarray, segments: Sequence[dict[str, Any]], classes: Classes
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """The reverse of `segments_of`: labels of ``ids`` and their ``segments``; crowds become void.

    Returns:
        semantic uint8 (H,W) and instance int32 (H,W), objects counted from 1; and the ids of the
        segments that have no pixel.

    Raises:
        KeyError: a category that `classes` does not have, or an id in the picture that
            ``segments`` do not.
    """
    number_of = {category: number for number, category in enumerate(classes.ids)}
    known = {0: (VOID, 0)}
    objects = 0
    for segment in segments:
        number = number_of[segment["category_id"]]
        counted = classes.is_thing[number] and not segment.get("iscrowd", 0)
        objects += counted
        void = segment.get("iscrowd", 0)
        known[segment["id"]] = (VOID if void else number, objects if counted else 0)
    present, places = np.unique(ids, return_inverse=True)
    table = np.array([known[int(number)] for number in present])
    labels = table[places.reshape(ids.shape)]
    unseen = sorted(known.keys() - {0} - set(present.tolist()))
    return labels[..., 0].astype(np.uint8), labels[..., 1].astype(np.int32), unseen
