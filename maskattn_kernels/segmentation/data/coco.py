# SPDX-License-Identifier: BSD-3-Clause
"""COCO's layouts: panoptic (things and stuff), instances, and own data as one COCO JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from maskattn_kernels.segmentation.data.coco_format import ids_from_rgb, labels_from_segments
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.images import folder, read_image, read_labels
from maskattn_kernels.segmentation.data.label_maps import (
    labelled,
    palette,
    read_json,
    share_out,
)
from maskattn_kernels.segmentation.data.sample import VOID, Classes, Sample

__all__ = ["CocoJson", "CocoPanoptic", "open_coco", "open_coco_json"]

LAYOUT = (
    "{train,val}2017/*.jpg, annotations/{panoptic,instances}_{train,val}2017.json and the PNGs in "
    "annotations/panoptic_{train,val}2017/ or panoptic_{train,val}2017/"
)
OWN_LAYOUT = "images/* and annotations.json (or train/*, val/*, train.json and val.json)"
BACKGROUND = "background"


def open_coco(
    root: Path, split: str = "train", labels: str = "panoptic", year: str = "2017"
) -> CocoPanoptic | CocoJson:
    """A split of COCO.

    Args:
        root: the folder with ``annotations``.
        split: "train" or "val".
        labels: "panoptic": 80 things and 53 kinds of stuff; "instances": 80 things on background.
        year: in the names of files.

    Raises:
        DataError: another layout, or files that cannot be used.
    """
    if labels not in ("panoptic", "instances"):
        raise DataError(f"labels: expected panoptic or instances, got {labels!r}")
    folder(root, LAYOUT)
    part = f"{split}{year}"
    images = root / part if (root / part).is_dir() else root / "images" / part
    annotations = folder(root / "annotations", LAYOUT)
    if labels == "instances":
        return CocoJson(annotations / f"instances_{part}.json", folder(images, LAYOUT))
    masks = annotations / f"panoptic_{part}"
    if not masks.is_dir():
        masks = root / f"panoptic_{part}"
    return CocoPanoptic(
        annotations / f"panoptic_{part}.json", folder(images, LAYOUT), folder(masks, LAYOUT)
    )


def open_coco_json(root: Path, split: str = "train") -> CocoJson:
    """Own data as COCO JSON.

    Args:
        root: the folder with the JSON. Without ``train.json`` and ``val.json``, a fifth of the
            images of ``annotations.json`` is for validation, always the same.
        split: "train" or "val".

    Raises:
        DataError: another layout, or files that cannot be used.
    """
    folder(root, OWN_LAYOUT)
    images = root / split if (root / split).is_dir() else folder(root / "images", OWN_LAYOUT)
    for path in (root / f"{split}.json", root / "annotations" / f"{split}.json"):
        if path.is_file():
            return CocoJson(path, images)
    path = root / "annotations.json"
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected the layout {OWN_LAYOUT}")
    return CocoJson(path, images, split)


def _classes(path: Path, rows: list[dict[str, Any]], background: bool) -> Classes:
    """The categories of a JSON in the order of their ids; all things, and then a background."""
    rows = sorted(_rows(path, rows, ("id", "name")), key=lambda row: row["id"])
    ids = [row["id"] for row in rows]
    names = [str(row["name"]) for row in rows]
    if not 1 <= len(rows) < VOID or len(set(ids)) < len(ids):
        raise DataError(f"{path}: expected 1 to {VOID - 1} categories with ids of their own")
    things = [background or bool(row.get("isthing", 1)) for row in rows]
    if background:
        ids.append(0 if min(ids) > 0 else max(ids) + 1)
        names.append(BACKGROUND)
        things.append(False)
    colors = palette(len(ids) + 1)[1:]
    return Classes(tuple(names), tuple(things), colors, tuple(ids))


def _rows(path: Path, rows: list[dict[str, Any]], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    for row in rows:
        for key in keys:
            if key not in row:
                raise DataError(f"{path}: an entry has no {key!r}: {str(row)[:80]}")
    return rows


def _images_by_id(path: Path, content: dict[str, Any], images: Path) -> dict[Any, Path]:
    """Image files of a JSON by their ids, all of them there."""
    found: dict[Any, Path] = {}
    stems = set()
    for row in _rows(path, content["images"], ("id", "file_name")):
        file = images / str(row["file_name"])
        if row["id"] in found or file.stem in stems:
            raise DataError(f"{path}: image {row['id']!r} ({file.name}) stands there twice")
        found[row["id"]] = file
        stems.add(file.stem)
    if not found:
        raise DataError(f"{path}: no images in it")
    missing = [file for file in found.values() if not file.is_file()]
    if missing:
        raise DataError(
            f"{images}: {len(missing)} of {len(found)} images of {path.name} are not there, such "
            f"as {missing[0].name}"
        )
    return found


class CocoPanoptic:
    """Images with COCO panoptic labels: a JSON and a PNG of segment ids for each image.

    Crowds, and pixels without a segment, are void.

    Args:
        path: of the JSON.
        images: folder of the images.
        masks: folder of the PNGs.

    Raises:
        DataError: files that are missing or cannot be used.
    """

    def __init__(self, path: Path, images: Path, masks: Path) -> None:
        content = read_json(path, ("images", "annotations", "categories"))
        self.classes = _classes(path, content["categories"], background=False)
        self._files = _images_by_id(path, content, images)
        keys = ("image_id", "file_name", "segments_info")
        rows = _rows(path, content["annotations"], keys)
        self._rows = [row for row in rows if row["image_id"] in self._files]
        if not self._rows:
            raise DataError(f"{path}: no annotation belongs to an image")
        self._path = path
        self._masks = masks

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[index]
        file = self._files[row["image_id"]]
        path = self._masks / row["file_name"]
        colors = read_labels(path)
        if colors.ndim != 3:
            raise DataError(f"{path}: expected a PNG in colour (RGB) of segment ids")
        try:
            semantic, instance = labels_from_segments(
                ids_from_rgb(colors), row["segments_info"], self.classes
            )
        except KeyError as unknown:
            raise DataError(
                f"{path}: unknown id {unknown}; neither a segment nor a category of {self._path}"
            ) from None
        image = read_image(file)
        return labelled(file.stem, image, semantic, instance, self.classes, path, file)


class CocoJson:
    """Images with COCO instance labels (polygons or run lengths); the rest is background.

    Where objects overlap, the smaller one is on top. Crowds are void.

    Args:
        path: of the JSON.
        images: folder of the images.
        split: None = all images; "train" or "val" = four fifths or one fifth of them.

    Raises:
        DataError: files that are missing or cannot be used.
    """

    def __init__(self, path: Path, images: Path, split: str | None = None) -> None:
        content = read_json(path, ("images", "annotations", "categories"))
        self.classes = _classes(path, content["categories"], background=True)
        files = _images_by_id(path, content, images)
        self._path = path
        self._objects: dict[Any, list[dict[str, Any]]] = {key: [] for key in files}
        known = set(self.classes.ids[:-1])
        for row in _rows(path, content["annotations"], ("image_id", "category_id")):
            if row["category_id"] not in known:
                raise DataError(
                    f"{path}: annotation {row.get('id')} has the unknown category "
                    f"{row['category_id']!r}; add it to categories"
                )
            if row["image_id"] in self._objects and row.get("segmentation"):
                self._objects[row["image_id"]].append(row)
        if not any(self._objects.values()):
            raise DataError(f"{path}: no annotation with a segmentation belongs to an image")
        by_name = {file.stem: key for key, file in files.items()}
        names = sorted(by_name)
        names = names if split is None else share_out(names, split, path)
        self._files = [(by_name[name], files[by_name[name]]) for name in names]

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        key, file = self._files[index]
        image = read_image(file)
        height, width = image.shape[:2]
        semantic = np.full((height, width), len(self.classes) - 1, dtype=np.uint8)
        instance = np.zeros((height, width), dtype=np.int32)
        masks = [(row, self._mask(row, height, width)) for row in self._objects[key]]
        crowds = [mask for row, mask in masks if row.get("iscrowd")]
        objects = [(row, mask) for row, mask in masks if not row.get("iscrowd")]
        for mask in crowds:
            semantic[mask] = VOID
        objects.sort(key=lambda entry: -int(entry[1].sum()))
        for number, (row, mask) in enumerate(objects, start=1):
            semantic[mask] = self.classes.ids.index(row["category_id"])
            instance[mask] = number
        return labelled(file.stem, image, semantic, instance, self.classes, self._path, file)

    def _mask(self, row: dict[str, Any], height: int, width: int) -> np.ndarray:
        shape = row["segmentation"]
        try:
            if isinstance(shape, list):
                record = coco_mask.merge(coco_mask.frPyObjects(shape, height, width))
            elif isinstance(shape["counts"], list):
                record = coco_mask.frPyObjects(shape, *shape["size"])
            else:
                record = shape
            mask = coco_mask.decode(record).astype(bool)
        except Exception as error:  # pycocotools raises whatever comes up
            raise DataError(
                f"{self._path}: annotation {row.get('id')}: a segmentation that cannot be read "
                f"({' '.join(str(error).split())})"
            ) from None
        if mask.shape != (height, width):
            raise DataError(
                f"{self._path}: annotation {row.get('id')} is of {mask.shape[1]} x "
                f"{mask.shape[0]} pixels, its image of {width} x {height}"
            )
        return mask
