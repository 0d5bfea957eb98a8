# SPDX-License-Identifier: BSD-3-Clause
"""Images with COCO panoptic labels: a JSON, and a PNG of segment ids for each image."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskattn_kernels.segmentation.data.coco_file import (
    CocoFile,
    Picture,
    flag,
    rows_of,
    text,
    whole_number,
)
from maskattn_kernels.segmentation.data.coco_format import ids_from_rgb, labels_from_segments
from maskattn_kernels.segmentation.data.errors import DataError, Tally, shown
from maskattn_kernels.segmentation.data.files import Files, unlisted
from maskattn_kernels.segmentation.data.images import read_colors
from maskattn_kernels.segmentation.data.label_maps import labelled
from maskattn_kernels.segmentation.data.sample import Sample

__all__ = ["CocoPanoptic"]


@dataclass(frozen=True, slots=True)
class _Labels:
    """The labels of an image: its PNG, and the checked ``segments_info``."""

    picture: Picture
    file: Path
    segments: list[dict[str, Any]]


class CocoPanoptic:
    """Images with COCO panoptic labels.

    Crowds, and pixels without a segment, are void.

    Args:
        path: of the JSON.
        images: folder of the images.
        masks: folder of the PNGs.

    Attributes:
        files: the images, by name.

    Raises:
        DataError: files that are missing or cannot be used.
    """

    def __init__(self, path: Path, images: Path, masks: Path) -> None:
        content = CocoFile(path, images, own_background=False)
        self.classes = content.classes
        self._path = path
        self._tally = Tally(path)
        self._rows = self._labels(content, masks)
        self._notes = unlisted(images, [p.file for p in content.pictures.values()], path)
        self.files: Mapping[str, Path] = {row.picture.name: row.picture.file for row in self._rows}

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out so far; reading samples may add to it."""
        return (*self._notes, *self._tally.lines())

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        row = self._rows[index]
        ids = ids_from_rgb(read_colors(row.file))
        try:
            semantic, instance, unseen = labels_from_segments(ids, row.segments, self.classes)
        except KeyError as unknown:
            raise DataError(
                f"{row.file}: unknown id {unknown}; neither a segment nor a category of "
                f"{self._path}"
            ) from None
        for segment in unseen:
            name = f"segment {segment} of {row.file.name}"
            self._tally.add("segments have no pixel in their PNG", name)
        image, file = row.picture.read(self._path), row.picture.file
        return labelled(row.picture.name, image, semantic, instance, self.classes, row.file, file)

    def _labels(self, content: CocoFile, masks: Path) -> list[_Labels]:
        path, files = self._path, Files(masks)
        found: dict[Any, _Labels] = {}
        for key, row in content.annotations:
            if key not in content.pictures:
                kind = "annotations are of images that the file does not list"
                self._tally.add(kind, f"image_id {shown(key)}")
                continue
            picture = content.pictures[key]
            if key in found:
                raise DataError(
                    f"{self._path}: image {shown(key)} ({picture.file.name}) has two annotations"
                )
            name, segments = text(path, row, "file_name"), rows_of(path, row, "segments_info")
            file = files.find(name, path) or masks / name
            checked = [self._segment(content, segment, key) for segment in segments]
            ids = [segment["id"] for segment in checked]
            if len({*ids}) < len(ids):
                twice = next(number for number in ids if ids.count(number) > 1)
                raise DataError(f"{path}: segment {twice} of image {shown(key)} appears twice")
            found[key] = _Labels(picture, file, checked)
        for key, picture in content.pictures.items():
            if key not in found:
                kind = "images have no annotation and are left out"
                self._tally.add(kind, picture.file.name)
        if not found:
            raise DataError(f"{self._path}: no annotation belongs to an image")
        return list(found.values())

    def _segment(self, content: CocoFile, segment: dict[str, Any], key: Any) -> dict[str, Any]:
        number = content.class_of(segment, f"a segment of image {shown(key)}")
        return {
            "id": whole_number(self._path, segment, "id"),
            "category_id": content.classes.ids[number],
            "iscrowd": flag(self._path, segment, "iscrowd"),
        }
