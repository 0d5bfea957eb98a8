# SPDX-License-Identifier: BSD-3-Clause
"""Own data as folders: images/, masks/, classes.yaml and, for objects, instances/."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from maskattn_kernels.segmentation.data.classes_file import read_classes
from maskattn_kernels.segmentation.data.errors import LayoutError, Tally
from maskattn_kernels.segmentation.data.files import folder, image_files, passed_over
from maskattn_kernels.segmentation.data.images import read_image
from maskattn_kernels.segmentation.data.label_maps import labelled, matched, without_image
from maskattn_kernels.segmentation.data.masks import read_numbers, read_objects
from maskattn_kernels.segmentation.data.sample import Classes, Sample
from maskattn_kernels.segmentation.data.splits import name_of_split, share_out

__all__ = ["Folder"]

_WHITE = 255
LAYOUT = "images/*, masks/*.png, classes.yaml (or these folders in train/ and val/)"


class Folder:
    """Own images with masks of the same name.

    A mask is a greyscale or palette PNG of class ids, or a PNG in the colours that ``classes.yaml``
    gives the classes. ``instances/`` may hold 8 or 16-bit PNGs with the number of each pixel's
    object, 0 = none. ``masks/`` may be called ``labels/``, as ``maskattn predict`` does.
    ``classes.yaml`` names the ids::

        classes:
          - {id: 0, name: road}
          - {id: 1, name: car, thing: true, color: [0, 0, 142]}
        void: [255]

    Where there are no folders ``train`` and ``val`` (or ``valid``), about a fifth of the images is
    for validation, chosen by a hash of their names; see `splits.share_out`.

    Args:
        root: the folder with ``classes.yaml``.
        split: "train" or "val".

    Attributes:
        files: the images of the split, by name.

    Raises:
        DataError: another layout, or files that cannot be used.
    """

    def __init__(self, root: Path, split: str = "train") -> None:
        folder(root, LAYOUT)
        self._classes_file = root / "classes.yaml"
        if not self._classes_file.is_file():
            raise LayoutError(f"{self._classes_file}: no such file; expected the layout {LAYOUT}")
        self._known = read_classes(self._classes_file)
        self.classes = self._known.classes
        own = name_of_split(root, split)
        place = root / own if own else root
        pictures = folder(place / "images", LAYOUT)
        predicted = not (place / "masks").is_dir() and (place / "labels").is_dir()
        masks = folder(place / ("labels" if predicted else "masks"), LAYOUT)
        images = image_files(pictures)
        self._masks = image_files(masks, (".png",))
        names = matched(images, self._masks, masks, "mask")
        names = names if own else share_out(names, split, pictures)
        self.files: Mapping[str, Path] = {name: images[name] for name in names}
        self._names = names
        self._objects: dict[str, Path] = {}
        if (place / "instances").is_dir():
            self._objects = image_files(place / "instances", (".png",))
            matched(images, self._objects, place / "instances", "instances")
        self._tally = Tally(root)
        self._notes = (
            *passed_over(pictures),
            *passed_over(masks, (".png",)),
            *without_image(images, self._masks, masks),
            *without_image(images, self._objects, place / "instances"),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What is passed over or lost so far; reading samples may add to it."""
        return (*self._notes, *self._tally.lines())

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        name = self._names[index]
        file, path = self.files[name], self._masks[name]
        image = read_image(file)
        semantic = read_numbers(path, self._known, self._classes_file)
        sample = labelled(name, image, semantic, None, self.classes, path, file)
        if not self._objects:
            return sample
        path = self._objects[name]
        objects = read_objects(path)
        sample = labelled(name, image, semantic, objects, self.classes, path, file, self._tally)
        if objects.max() == _WHITE and not ((objects > 0) & (objects < _WHITE)).any():
            kind = f"files of instances have no number but {_WHITE}, so that all objects are one"
            self._tally.add(kind, path.name)
        for number in _of_two_classes(objects, semantic, self.classes):
            kind = "objects have pixels of two classes; number all objects of an image differently"
            self._tally.add(kind, f"object {number} of {path}")
        return sample


def _of_two_classes(objects: np.ndarray, semantic: np.ndarray, classes: Classes) -> list[int]:
    """Numbers of the objects with pixels of more than one thing class."""
    counted = (objects > 0) & classes.where_things(semantic)
    numbers, class_numbers = objects[counted], semantic[counted]
    class_of = np.zeros(int(objects.max()) + 1, dtype=np.uint8)
    class_of[numbers] = class_numbers
    return np.unique(numbers[class_of[numbers] != class_numbers]).tolist()
