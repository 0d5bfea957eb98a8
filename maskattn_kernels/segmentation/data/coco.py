# SPDX-License-Identifier: BSD-3-Clause
"""COCO's layouts: panoptic (things and stuff), instances, and own data as one COCO JSON."""

from pathlib import Path

from maskattn_kernels.segmentation.data.coco_file import read_json
from maskattn_kernels.segmentation.data.coco_json import CocoJson
from maskattn_kernels.segmentation.data.coco_panoptic import CocoPanoptic
from maskattn_kernels.segmentation.data.errors import DataError, LayoutError
from maskattn_kernels.segmentation.data.files import folder
from maskattn_kernels.segmentation.data.splits import name_of_split

__all__ = ["open_coco", "open_coco_json"]

LAYOUT = (
    "{train,val}2017/*.jpg, annotations/{panoptic,instances}_{train,val}2017.json and the PNGs in "
    "annotations/panoptic_{train,val}2017/ or panoptic_{train,val}2017/"
)
OWN_LAYOUT = "images/* and annotations.json (or train/*, val/*, train.json and val.json)"
# Ours, Datumaro's and Roboflow's; and ours, CVAT's and Roboflow's without splits.
OWN_SPLITS = (
    "{}.json",
    "annotations/{}.json",
    "annotations/instances_{}.json",
    "{}/_annotations.coco.json",
)
OWN_WHOLE = ("annotations.json", "annotations/instances_default.json", "_annotations.coco.json")


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
        root: the folder with the JSON: `OWN_SPLITS`, with "train" and "val" (or "valid"); or
            `OWN_WHOLE`, or the only JSON there, of which about a fifth of the images is for
            validation, chosen by a hash of their names.
        split: "train" or "val".

    Raises:
        DataError: another layout, or files that cannot be used.
    """
    folder(root, OWN_LAYOUT)
    for form in OWN_SPLITS:
        name = name_of_split(root, split, form)
        if name is not None:
            shared = root / "images"
            images = _first_folder((root / name, shared / name, shared))
            return CocoJson(root / form.format(name), images, shared=images == shared)
    for path in (root / name for name in OWN_WHOLE):
        if path.is_file():
            places = (root / "images" / "default", root / "images", path.parent)
            return CocoJson(path, _first_folder(places), split)
    others = [path for place in (root, root / "annotations") for path in place.glob("*.json")]
    if len(others) == 1 and _is_coco(others[0]):
        return CocoJson(others[0], _first_folder((root / "images", root)), split)
    raise LayoutError(f"{root / OWN_WHOLE[0]}: no such file; expected the layout {OWN_LAYOUT}")


def _is_coco(path: Path) -> bool:
    try:
        read_json(path, ("images", "annotations", "categories"))
    except DataError:
        return False
    return True


def _first_folder(places: tuple[Path, ...]) -> Path:
    return next((place for place in places if place.is_dir()), None) or folder(
        places[-1], OWN_LAYOUT
    )
