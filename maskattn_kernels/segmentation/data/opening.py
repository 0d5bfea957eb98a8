# SPDX-License-Identifier: BSD-3-Clause
"""`open_dataset`: a data set by its name."""

import inspect
from pathlib import Path
from typing import Any

from maskattn_kernels.common.extras import import_attribute
from maskattn_kernels.segmentation.data.errors import DataError, LayoutError
from maskattn_kernels.segmentation.data.foreign import foreign_hint
from maskattn_kernels.segmentation.data.sample import SegmentationDataset

__all__ = ["NAMES", "SPLITS", "open_dataset", "other_split"]

#: Name of a data set to what opens it, beside this module. Imported when it is opened, so that a
#: data set needs no packages of the others.
_GENERATED = {"digit-scenes": "digit_scenes:DigitScenes"}
_READERS = {
    "coco": "coco:open_coco",
    "ade20k": "ade20k:ADE20K",
    "cityscapes": "cityscapes:Cityscapes",
    "bdd100k": "bdd100k:BDD100K",
    "folder": "folder:Folder",
    "coco-json": "coco:open_coco_json",
}
NAMES = (*_GENERATED, *_READERS)
SPLITS = ("train", "val")


def other_split(split: str) -> str:
    """The split of `SPLITS` that has none of the images of a ``split``.

    Example:
        >>> other_split("val")
        'train'
    """
    return SPLITS[1 - SPLITS.index(split)]


def open_dataset(
    name: str, root: Path | None = None, split: str = "train", **options: Any
) -> SegmentationDataset:
    """Open a split of a data set.

    Args:
        name: digit-scenes, coco, ade20k, cityscapes, bdd100k, folder or coco-json.
        root: its folder; None for digit-scenes, which is generated.
        split: "train" or "val".
        options: of the data set's class, such as `count` of digit-scenes.

    Raises:
        DataError: an unknown name, split or option, or files that cannot be used.
        ModuleNotFoundError: a package is missing that this data set needs.

    Example:
        >>> len(open_dataset("digit-scenes", split="val", count=10))
        10
    """
    if name not in NAMES:
        raise DataError(f"name: expected one of {', '.join(NAMES)}, got {name!r}")
    if split not in SPLITS:
        raise DataError(f"split: expected {' or '.join(SPLITS)}, got {split!r}")
    place = f"maskattn_kernels.segmentation.data.{(_GENERATED | _READERS)[name]}"
    kind = import_attribute(place, extra="train")
    known = [key for key in inspect.signature(kind).parameters if key not in ("root", "split")]
    for key in options:
        if key not in known:
            options_of = ", ".join(known) or "none"
            raise DataError(f"unknown option {key!r} for {name}; known: {options_of}")
    if name in _GENERATED:
        if root is not None:
            raise DataError(f"root: {name} is generated and has no folder, got {str(root)!r}")
        return kind(split=split, **options)
    if root is None:
        raise DataError(f"root: {name} needs the folder of its files")
    try:
        return kind(root=Path(root), split=split, **options)
    except LayoutError as error:
        raise LayoutError(f"{error}{foreign_hint(Path(root), name)}") from None
