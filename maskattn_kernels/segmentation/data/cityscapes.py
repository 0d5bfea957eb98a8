# SPDX-License-Identifier: BSD-3-Clause
"""Cityscapes: leftImg8bit and gtFine, 19 classes."""

from pathlib import Path

import numpy as np

from maskattn_kernels.segmentation.data.errors import DataError, Tally
from maskattn_kernels.segmentation.data.files import folder
from maskattn_kernels.segmentation.data.images import read_image, read_labels
from maskattn_kernels.segmentation.data.label_maps import labelled, map_ids, matched, without_image
from maskattn_kernels.segmentation.data.masks import read_objects
from maskattn_kernels.segmentation.data.sample import Sample
from maskattn_kernels.segmentation.data.street_classes import CITYSCAPES

__all__ = ["Cityscapes"]

LAYOUT = (
    "leftImg8bit/{train,val}/CITY/*_leftImg8bit.png and "
    "gtFine/{train,val}/CITY/*_gtFine_{labelIds,instanceIds}.png"
)
_IMAGE = "_leftImg8bit.png"
_LABEL = "_gtFine_labelIds.png"


class Cityscapes:
    """A split of Cityscapes.

    The files hold labelIds, 0 to 33; classes are trainIds, 0 to 18, the rest is void. A group of
    objects that is annotated as one has its class but no object.

    Args:
        root: the folder with ``leftImg8bit`` and ``gtFine``.
        split: "train" or "val".

    Attributes:
        files: the images, by name.

    Raises:
        DataError: another layout, or files that cannot be used.
    """

    classes = CITYSCAPES

    def __init__(self, root: Path, split: str = "train") -> None:
        folder(root, LAYOUT)
        pictures = folder(root / "leftImg8bit" / split, LAYOUT)
        labels = folder(root / "gtFine" / split, LAYOUT)
        images = {p.name.removesuffix(_IMAGE): p for p in sorted(pictures.glob(f"*/*{_IMAGE}"))}
        if not images:
            raise DataError(f"{pictures}: no images; expected CITY/*{_IMAGE} there")
        self._labels = {p.name.removesuffix(_LABEL): p for p in labels.glob(f"*/*{_LABEL}")}
        self.files = images
        self._tally = Tally(labels)
        self._notes = without_image(images, self._labels, labels)
        self._names = matched(images, self._labels, labels)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is passed over or lost so far; reading samples may add to it."""
        return (*self._notes, *self._tally.lines())

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        name = self._names[index]
        path = self._labels[name]
        advice = "expected labelIds from 0 to 33, as Cityscapes publishes them (never trainIds)"
        semantic = map_ids(read_labels(path), self.classes.number_of, path, advice)
        objects = read_objects(path.with_name(f"{name}_gtFine_instanceIds.png"))
        # An object's number is 1000 * labelId + its count; smaller numbers are stuff and groups.
        instance = np.where(objects >= 1000, objects, 0)
        file = self.files[name]
        return labelled(
            name, read_image(file), semantic, instance, self.classes, path, file, self._tally
        )
