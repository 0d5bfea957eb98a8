# SPDX-License-Identifier: BSD-3-Clause
"""COCO's formats: panoptic PNG + JSON, written and read; results with run-length masks.

Sources: the panoptic and the results format on https://cocodataset.org/#format-data.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.ndimage import find_objects

from maskattn_kernels.common.atomic import replace_file
from maskattn_kernels.segmentation.data.sample import VOID, Classes

__all__ = [
    "PanopticWriter",
    "categories",
    "encode_masks",
    "ids_from_rgb",
    "instance_results",
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
    """Cut label maps into COCO's segments: each object one, the rest one for each stuff class.

    Void, and pixels of a thing class that belong to no object, get no segment.

    Args:
        semantic: (H,W), class numbers or `VOID`.
        instance: (H,W), 0 = no object.
        classes: of the numbers.
        scores: of the objects 1, 2, ...; kept as ``score`` of their segments.

    Returns:
        int32 (H,W) ids from 1, 0 = no segment; and the list ``segments_info``.
    """
    thing = classes.where_things(semantic)
    valid = (semantic != VOID) & (~thing | (instance > 0))
    key = np.where(valid, semantic + 256 * (np.where(thing, instance, 0).astype(np.int64) + 1), 0)
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


class PanopticWriter:
    """Writes predictions as COCO panoptic: a PNG for each image, and one JSON.

    Args:
        path: of the JSON; the PNGs go into the folder of the same name without ending.
        classes: of the label maps.

    Example:
        >>> import tempfile
        >>> classes = Classes(("sky", "car"), (False, True), ((0, 0, 9), (9, 0, 0)), (1, 7))
        >>> semantic = np.array([[0, 1], [0, 1]], dtype=np.uint8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     writer = PanopticWriter(Path(folder) / "panoptic.json", classes)
        ...     writer.add("a", semantic, semantic.astype(np.int32))
        ...     writer.close()
        ...     sorted(p.name for p in Path(folder).rglob("*"))
        ['a.png', 'panoptic', 'panoptic.json']
    """

    def __init__(self, path: Path, classes: Classes) -> None:
        self.path = Path(path)
        self.folder = self.path.with_suffix("")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.classes = classes
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []

    def add(
        self,
        name: str,
        semantic: np.ndarray,
        instance: np.ndarray,
        scores: Sequence[float] | None = None,
        image_id: int | str | None = None,
    ) -> None:
        """Write the PNG of one image.

        Args:
            name: of the image, without ending.
            semantic: (H,W), class numbers or `VOID`.
            instance: (H,W), 0 = no object.
            scores: of the objects 1, 2, ...; kept as ``score`` of their segments.
            image_id: None = the name.
        """
        ids, segments = segments_of(semantic, instance, self.classes, scores)
        # Label maps shrink well at the fastest level too.
        picture = Image.fromarray(rgb_from_ids(ids))
        picture.save(self.folder / f"{name}.png", compress_level=1)
        key = name if image_id is None else image_id
        height, width = semantic.shape
        self._images.append({"id": key, "file_name": name, "height": height, "width": width})
        annotation = {"image_id": key, "file_name": f"{name}.png", "segments_info": segments}
        self._annotations.append(annotation)

    def close(self) -> None:
        """Write the JSON."""
        content = {
            "images": self._images,
            "annotations": self._annotations,
            "categories": categories(self.classes),
        }
        text = json.dumps(content) + "\n"
        replace_file(self.path, lambda path: path.write_text(text, encoding="utf-8"))


def encode_masks(masks: np.ndarray) -> list[dict[str, Any]]:
    """``masks``, bool (H,W,K), as K run-length records that JSON can hold."""
    from pycocotools import mask as coco_mask  # for AP only; PNGs need no run lengths

    records = coco_mask.encode(np.asfortranarray(masks, dtype=np.uint8))
    return [{"size": r["size"], "counts": r["counts"].decode("ascii")} for r in records]


def instance_results(
    image_id: int | str,
    instance: np.ndarray,
    labels: Sequence[int],
    scores: Sequence[float],
    classes: Classes,
) -> list[dict[str, Any]]:
    """Objects as entries of a COCO results JSON.

    Args:
        image_id: of the image.
        instance: (H,W), 0 = no object.
        labels: the class number of each object 1, 2, ...; `VOID` = not in use.
        scores: of each object.
        classes: of the numbers.
    """
    used = [k for k, label in enumerate(labels) if label != VOID and classes.is_thing[label]]
    masks = instance[..., None] == np.array([k + 1 for k in used], dtype=instance.dtype)
    rows = zip(used, encode_masks(masks) if used else (), masks.any(axis=(0, 1)), strict=True)
    return [
        {
            "image_id": image_id,
            "category_id": classes.ids[labels[k]],
            "segmentation": record,
            "score": float(scores[k]),
        }
        for k, record, seen in rows
        if seen
    ]
