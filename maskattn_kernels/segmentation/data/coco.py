# SPDX-License-Identifier: BSD-3-Clause
"""COCO's layouts: panoptic (things and stuff), instances, and own data as one COCO JSON."""

from __future__ import annotations

from pathlib import Path

from maskattn_kernels.segmentation.data.coco_json import CocoJson
from maskattn_kernels.segmentation.data.coco_panoptic import CocoPanoptic
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.files import folder

__all__ = ["open_coco", "open_coco_json"]

LAYOUT = (
    "{train,val}2017/*.jpg, annotations/{panoptic,instances}_{train,val}2017.json and the PNGs in "
    "annotations/panoptic_{train,val}2017/ or panoptic_{train,val}2017/"
)
OWN_LAYOUT = "images/* and annotations.json (or train/*, val/*, train.json and val.json)"


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
