# SPDX-License-Identifier: BSD-3-Clause
"""Images with COCO instance labels: polygons, run lengths and boxes in one JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maskattn_kernels.segmentation.data.coco_file import CocoFile, Picture, flag
from maskattn_kernels.segmentation.data.coco_masks import Box, Shape, box, outline
from maskattn_kernels.segmentation.data.errors import DataError, Tally, shown
from maskattn_kernels.segmentation.data.files import unlisted
from maskattn_kernels.segmentation.data.label_maps import labelled
from maskattn_kernels.segmentation.data.sample import VOID, Sample
from maskattn_kernels.segmentation.data.splits import share_out

__all__ = ["CocoJson"]

_NO_PIXEL = "annotations mark no pixel: {}"
_OUTSIDE = _NO_PIXEL.format("nothing of them lies in their image")
_PERCENT_OF = 200
"""Objects in percent are looked for in images whose sides have at least so many pixels."""
_OBJECTS_IN_PERCENT = 5


@dataclass(frozen=True, slots=True)
class _Object:
    """An annotation with a shape: its name for people, class number and whether it is void."""

    name: str
    number: int
    void: bool
    shape: Shape


class CocoJson:
    """Images with COCO instance labels; the rest is background.

    Where objects overlap, the smaller one is on top. Crowds are void, and so are the boxes of
    annotations that have no outline. A category named "background" is the background.

    Args:
        path: of the JSON.
        images: folder of the images.
        split: None = all images; "train" or "val" = four fifths or one fifth of them.
        shared: whether ``images`` also holds images of other JSONs.

    Attributes:
        files: the images of the split, by name.

    Raises:
        DataError: files that are missing or cannot be used.
    """

    def __init__(
        self, path: Path, images: Path, split: str | None = None, shared: bool = False
    ) -> None:
        content = CocoFile(path, images, own_background=True)
        self.classes, self._background = content.classes, content.background
        self._path = path
        self._notes = content.notes
        self._tally = Tally(path)
        objects = self._objects_by_image(content)
        by_name = {picture.name: key for key, picture in content.pictures.items()}
        names = sorted(by_name)
        names = names if split is None else share_out(names, split, path)
        self._pictures = [content.pictures[by_name[name]] for name in names]
        self._objects = [objects[by_name[name]] for name in names]
        if not shared:
            self._notes += unlisted(images, [p.file for p in content.pictures.values()], path)
        self.files: Mapping[str, Path] = {p.name: p.file for p in self._pictures}

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out or guessed so far; reading samples may add to it."""
        return (*self._notes, *self._tally.lines())

    def __len__(self) -> int:
        return len(self._pictures)

    def __getitem__(self, index: int) -> Sample:
        picture = self._pictures[index]
        image = picture.read(self._path)
        height, width = image.shape[:2]
        semantic = np.full((height, width), self._background, dtype=np.uint8)
        instance = np.zeros((height, width), dtype=np.int32)
        drawn = []
        for found in self._objects[index]:
            self._check(found, (height, width))
            mask = found.shape.draw(height, width)
            if not mask.any():
                outside = found.shape.outside(height, width)
                kind = _OUTSIDE if outside else _NO_PIXEL.format("they are smaller than one")
                self._tally.add(kind, found.name)
            elif found.void:
                semantic[mask] = VOID
            else:
                drawn.append((found, mask))
        drawn.sort(key=lambda entry: -int(entry[1].sum()))
        for number, (found, mask) in enumerate(drawn, start=1):
            semantic[mask] = found.number
            instance[mask] = number
        left = np.bincount(instance.ravel(), minlength=len(drawn) + 1)[1:]
        for (found, _), pixels in zip(drawn, left.tolist(), strict=True):
            if not pixels:
                self._tally.add(_NO_PIXEL.format("other objects cover them"), found.name)
        path, file = self._path, picture.file
        return labelled(picture.name, image, semantic, instance, self.classes, path, file)

    def _objects_by_image(self, content: CocoFile) -> dict[Any, list[_Object]]:
        objects: dict[Any, list[_Object]] = {key: [] for key in content.pictures}
        for key, row in content.annotations:
            name = f"annotation {shown(row.get('id'))}"
            number = content.class_of(row, name)
            if key not in objects:
                kind = "annotations are of images that the file does not list"
                self._tally.add(kind, f"{name} (image_id {shown(key)})")
                continue
            found = self._object(row, name, number, content.pictures[key])
            if found is not None:
                objects[key].append(found)
        annotated = {key for key, _ in content.annotations}
        for key, picture in content.pictures.items():
            if key not in annotated:
                kind = "images have no annotation: all of their pixels are background"
                self._tally.add(kind, picture.file.name)
        self._check_all([found for group in objects.values() for found in group])
        sizes = [content.pictures[key].size for key, group in objects.items() for _ in group]
        if all(size and min(size) >= _PERCENT_OF for size in sizes):
            self._look_for_percent([found for group in objects.values() for found in group])
        return objects

    def _object(self, row: dict[str, Any], name: str, number: int, of: Picture) -> _Object | None:
        """The annotation, if it can mark a pixel; else it is counted."""
        try:
            shape: Shape | None = outline(row.get("segmentation"))
            crowd = flag(self._path, row, "iscrowd")
            if shape is None:
                shape, crowd = box(row.get("bbox")), True
                kind = "annotations have a box and no outline: their boxes are void"
                if shape is None:
                    kind = _NO_PIXEL.format("they have no outline of three points and no box")
                self._tally.add(kind, name)
        except DataError:
            raise
        except ValueError as error:
            raise DataError(
                f"{self._path}: {name}: a segmentation that cannot be read ({error})"
            ) from None
        if shape is None:
            return None
        found = _Object(name, number, crowd, shape)
        if of.size is not None:
            self._check(found, of.size)
            if shape.outside(*of.size):
                self._tally.add(_OUTSIDE, name)
                return None
        return found

    def _check(self, found: _Object, size: tuple[int, int]) -> None:
        try:
            found.shape.check(*size)
        except ValueError as error:
            raise DataError(f"{self._path}: {found.name} {error}") from None

    def _check_all(self, objects: list[_Object]) -> None:
        """Faults that only all annotations together show."""
        outlines = [found for found in objects if not isinstance(found.shape, Box)]
        if not outlines:
            others = "".join(f"; {line}" for line in self._tally.lines())
            raise DataError(
                f"{self._path}: no annotation with a segmentation belongs to an image{others}"
            )
        fractions = [found for found in objects if found.shape.within(1)]
        if 2 * len(fractions) > len(objects):
            raise DataError(
                f"{self._path}: {len(fractions)} of {len(objects)} annotations have coordinates "
                f"from 0 to 1 only, such as {fractions[0].name}; multiply them by the image's "
                f"width and height"
            )
        for found in fractions:
            kind = "annotations have coordinates from 0 to 1 only (fractions of the image?)"
            self._tally.add(kind, found.name)
        if all(found.void for found in outlines):
            self._notes += (
                f"{self._path}: all {len(outlines)} objects are crowds (iscrowd: 1), which are "
                f"void; write iscrowd: 0 where an annotation is one object",
            )

    def _look_for_percent(self, objects: list[_Object]) -> None:
        if len(objects) >= _OBJECTS_IN_PERCENT and all(o.shape.within(100) for o in objects):
            self._notes += (
                f"{self._path}: all coordinates of {len(objects)} annotations are from 0 to 100, "
                f"such as those of {objects[0].name}; if they are percent, multiply them by a "
                f"hundredth of the image's width and height",
            )
