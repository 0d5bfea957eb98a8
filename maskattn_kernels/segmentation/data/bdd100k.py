# SPDX-License-Identifier: BSD-3-Clause
"""BDD100K: the 10k images with segmentation labels, 19 classes."""

from pathlib import Path

import numpy as np

from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.files import folder, image_files, passed_over
from maskattn_kernels.segmentation.data.images import read_image, read_labels
from maskattn_kernels.segmentation.data.label_maps import labelled, map_ids, matched, without_image
from maskattn_kernels.segmentation.data.sample import VOID, Sample
from maskattn_kernels.segmentation.data.street_classes import (
    BDD_NUMBERS,
    BDD_OBJECT_NUMBERS,
    STREET,
)

__all__ = ["BDD100K"]

LAYOUT = (
    "images/10k/{train,val}/*.jpg, labels/sem_seg/masks/{train,val}/*.png and, for objects, "
    "labels/pan_seg/bitmasks/{train,val}/*.png or labels/ins_seg/bitmasks/{train,val}/*.png"
)
_KINDS = {"pan_seg": BDD_NUMBERS, "ins_seg": BDD_OBJECT_NUMBERS}
_CROWD_OR_IGNORED = 0b11


class BDD100K:
    """A split of BDD100K: classes from the semantic masks, objects from the bitmasks.

    A bitmask is RGBA: category, attributes, and the object's number in blue and alpha. Crowds and
    ignored objects are void. Without bitmasks there are no objects.

    Args:
        root: the folder with ``images`` and ``labels``.
        split: "train" or "val".

    Attributes:
        files: the images, by name.

    Raises:
        DataError: another layout, or files that cannot be used.
    """

    classes = STREET

    def __init__(self, root: Path, split: str = "train") -> None:
        folder(root, LAYOUT)
        self.files = image_files(folder(root / "images" / "10k" / split, LAYOUT))
        masks = folder(root / "labels" / "sem_seg" / "masks" / split, LAYOUT)
        self._masks = image_files(masks, (".png",))
        self._names = matched(self.files, self._masks, masks)
        self.notes = (
            *passed_over(root / "images" / "10k" / split),
            *without_image(self.files, self._masks, masks),
        )
        self._objects: dict[str, Path] = {}
        for kind, numbers in _KINDS.items():
            place = root / "labels" / kind / "bitmasks" / split
            if place.is_dir():
                self._objects = image_files(place, (".png",))
                self._numbers = numbers
                matched(self.files, self._objects, place, "bitmasks")
                break

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        name = self._names[index]
        file = self.files[name]
        image = read_image(file)
        path = self._masks[name]
        advice = "expected trainIds from 0 to 18, or 255"
        semantic = map_ids(read_labels(path), STREET.number_of, path, advice)
        if not self._objects:
            return labelled(name, image, semantic, None, self.classes, path, file)
        path = self._objects[name]
        bits = read_labels(path)
        if bits.ndim != 3 or bits.shape[-1] != 4:
            raise DataError(f"{path}: expected a bitmask of 4 channels (RGBA)")
        number = map_ids(bits[..., 0], self._numbers, path, "expected BDD100K's categories")
        thing = STREET.where_things(number)
        left_out = thing & ((bits[..., 1] & _CROWD_OR_IGNORED) > 0)
        objects = (bits[..., 2].astype(np.int32) << 8) + bits[..., 3]
        instance = np.where(thing & ~left_out, objects, 0).astype(np.int32)
        if semantic.shape == thing.shape:
            semantic = np.where(left_out, VOID, np.where(thing, number, semantic))
        semantic = semantic.astype(np.uint8)
        return labelled(name, image, semantic, instance, self.classes, path, file)
