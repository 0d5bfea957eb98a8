# SPDX-License-Identifier: BSD-3-Clause
"""`open_dataset`: a data set by its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from maskattn_kernels.segmentation.data.ade20k import ADE20K
from maskattn_kernels.segmentation.data.bdd100k import BDD100K
from maskattn_kernels.segmentation.data.cityscapes import Cityscapes
from maskattn_kernels.segmentation.data.coco import open_coco, open_coco_json
from maskattn_kernels.segmentation.data.digit_scenes import DigitScenes
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.folder import Folder
from maskattn_kernels.segmentation.data.sample import SegmentationDataset

__all__ = ["NAMES", "SPLITS", "open_dataset"]

_GENERATED: dict[str, Callable[..., SegmentationDataset]] = {"digit-scenes": DigitScenes}
_READERS: dict[str, Callable[..., SegmentationDataset]] = {
    "coco": open_coco,
    "ade20k": ADE20K,
    "cityscapes": Cityscapes,
    "bdd100k": BDD100K,
    "folder": Folder,
    "coco-json": open_coco_json,
}
NAMES = (*_GENERATED, *_READERS)
SPLITS = ("train", "val")


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

    Example:
        >>> len(open_dataset("digit-scenes", split="val", count=10))
        10
    """
    if name not in NAMES:
        raise DataError(f"name: expected one of {', '.join(NAMES)}, got {name!r}")
    if split not in SPLITS:
        raise DataError(f"split: expected {' or '.join(SPLITS)}, got {split!r}")
    kind = _GENERATED.get(name) or _READERS[name]
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
    return kind(root=Path(root), split=split, **options)
