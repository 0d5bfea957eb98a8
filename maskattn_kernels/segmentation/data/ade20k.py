# SPDX-License-Identifier: BSD-3-Clause
"""ADE20K as its scene parsing challenge publishes it: 150 classes, 100 of them things."""

from pathlib import Path

import numpy as np

from maskattn_kernels.segmentation.data.ade20k_classes import ADE20K_CLASSES
from maskattn_kernels.segmentation.data.coco_file import (
    is_thing,
    read_json,
    rows_of,
    text,
    whole_number,
)
from maskattn_kernels.segmentation.data.coco_format import ids_from_rgb
from maskattn_kernels.segmentation.data.errors import DataError, Tally
from maskattn_kernels.segmentation.data.files import composed, folder, image_files, passed_over
from maskattn_kernels.segmentation.data.images import read_colors, read_image, read_labels
from maskattn_kernels.segmentation.data.label_maps import labelled, map_ids, matched, without_image
from maskattn_kernels.segmentation.data.sample import Sample

__all__ = ["ADE20K"]

LAYOUT = (
    "images/{training,validation}/*.jpg, annotations/{training,validation}/*.png and, for objects, "
    "ade20k_panoptic_{train,val}.json with a folder of PNGs of that name, or "
    "annotations_instance/{training,validation}/*.png"
)


class ADE20K:
    """A split of ADE20K.

    Classes are from ``annotations``: 0 there is void, 1 to 150 are the classes. Objects are the
    segments of thing classes in the panoptic files, or the green channel of
    ``annotations_instance``; an object has the class that ``annotations`` give its pixels.

    Args:
        root: the folder ``ADEChallengeData2016``.
        split: "train" or "val".

    Attributes:
        files: the images, by name.

    Raises:
        DataError: another layout, or files that cannot be used.
    """

    classes = ADE20K_CLASSES

    def __init__(self, root: Path, split: str = "train") -> None:
        folder(root, LAYOUT)
        place = {"train": "training", "val": "validation"}[split]
        self.files = image_files(folder(root / "images" / place, LAYOUT))
        masks = folder(root / "annotations" / place, LAYOUT)
        self._masks = image_files(masks, (".png",))
        self._names = matched(self.files, self._masks, masks)
        self._tally = Tally(root)
        self._notes = (
            *passed_over(root / "images" / place),
            *without_image(self.files, self._masks, masks),
        )
        self._panoptic = self._instance = None
        panoptic, instances = (
            root / f"ade20k_panoptic_{split}",
            root / "annotations_instance" / place,
        )
        if panoptic.is_dir():
            self._panoptic = image_files(panoptic, (".png",))
            self._segments = _segments(panoptic.with_suffix(".json"))
            matched(self.files, self._panoptic.keys() & self._segments.keys(), panoptic)
        elif instances.is_dir():
            self._instance = image_files(instances, (".png",))
            matched(self.files, self._instance, instances)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is passed over or lost so far; reading samples may add to it."""
        return (*self._notes, *self._tally.lines())

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        name = self._names[index]
        path = self._masks[name]
        advice = "expected 0 (void) to 150, as in ADEChallengeData2016/annotations"
        semantic = map_ids(read_labels(path), self.classes.number_of, path, advice)
        file, objects = self.files[name], self._objects(name)
        return labelled(
            name, read_image(file), semantic, objects, self.classes, path, file, self._tally
        )

    def _objects(self, name: str) -> np.ndarray | None:
        if self._panoptic is not None:
            path, things = self._panoptic[name], self._segments[name]
            ids = ids_from_rgb(read_colors(path))
            unknown = np.setdiff1d(ids, [0, *things])
            if unknown.size:
                raise DataError(f"{path}: id {unknown[0]} is not of a segment in its JSON")
            objects = np.where(np.isin(ids, [id for id, thing in things.items() if thing]), ids, 0)
        elif self._instance is not None:
            path = self._instance[name]
            objects = read_colors(path)[..., 1].astype(np.int32)
        else:
            return None
        return objects.astype(np.int32)


def _segments(path: Path) -> dict[str, dict[int, bool]]:
    """Ids of the segments, each with whether its class is a thing, by image name."""
    content = read_json(path, ("annotations", "categories"))
    things = {whole_number(path, row, "id") for row in content["categories"] if is_thing(path, row)}
    return {
        composed(Path(text(path, row, "file_name")).stem): {
            whole_number(path, segment, "id"): whole_number(path, segment, "category_id") in things
            for segment in rows_of(path, row, "segments_info")
        }
        for row in content["annotations"]
    }
