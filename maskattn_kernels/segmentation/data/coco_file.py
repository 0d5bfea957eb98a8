# SPDX-License-Identifier: BSD-3-Clause
"""A COCO JSON of which every field has been checked: ids, images on the disk, categories."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from maskattn_kernels.common.text import one_line
from maskattn_kernels.segmentation.data.errors import DataError, LayoutError, shown
from maskattn_kernels.segmentation.data.files import LONGEST, Files, composed, is_text
from maskattn_kernels.segmentation.data.images import read_image, turned_hint
from maskattn_kernels.segmentation.data.label_maps import palette
from maskattn_kernels.segmentation.data.sample import LARGEST_ID, VOID, Classes

__all__ = [
    "BACKGROUND",
    "CocoFile",
    "Picture",
    "flag",
    "is_thing",
    "read_json",
    "rows_of",
    "text",
    "whole_number",
]

BACKGROUND = "background"
Row = dict[str, Any]
Key = int | str


@dataclass(frozen=True)
class Picture:
    """An image of a JSON.

    Attributes:
        name: the file's, without ending.
        file: on the disk.
        size: height and width as the JSON declares them; None where it does not.
    """

    name: str
    file: Path
    size: tuple[int, int] | None

    def read(self, path: Path) -> np.ndarray:
        """Its pixels; `path` is the JSON, for the error.

        Raises:
            DataError: it cannot be read, or has another size than the JSON declares.
        """
        image = read_image(self.file)
        if self.size is not None and image.shape[:2] != self.size:
            (height, width), (high, wide) = self.size, image.shape[:2]
            cure = turned_hint(self.file, height, width)
            cure = cure or "; expected the file that was labelled, at its size"
            raise DataError(
                f"{path}: {self.file.name} is declared with {width} x {height} pixels, the file "
                f"has {wide} x {high}{cure}"
            )
        return image


class CocoFile:
    """A COCO JSON whose ids, file names and categories are sound.

    Args:
        path: of the JSON.
        images: folder of the images.
        own_background: whether the pixels outside of all objects are a class. All categories are
            things then, but for those with ``isthing: 0`` and one named "background", which is that
            class; where there is none, it is added at the end. Otherwise each category must have
            ``isthing``.

    Attributes:
        pictures: by id.
        classes: the categories in the order of their ids.
        background: the number of the class named "background"; None = there is none.
        annotations: the rows, not checked yet but for their ``image_id``, which is the first entry
            of each pair.
        notes: what was left out.

    Raises:
        DataError: no such JSON, a field that is missing or of another type, or images that are not
            in the folder.
    """

    def __init__(self, path: Path, images: Path, own_background: bool) -> None:
        content = read_json(path, ("images", "annotations", "categories"))
        self.path = path
        self.pictures = _pictures(path, content["images"], images)
        self.annotations = [(_key(path, row, "image_id"), row) for row in content["annotations"]]
        rows = [_category(path, row, own_background) for row in content["categories"]]
        root = _root(rows) if own_background else None
        self.notes: tuple[str, ...] = ()
        used = (_plain(row.get("category_id")) for _, row in self.annotations)
        if root is not None and root["id"] not in used:
            rows.remove(root)
            self.notes = (
                f"{path}: category {root['name']!r} is left out: it only groups the others",
            )
        self.classes = _classes(path, rows, own_background)
        named = [number for number, name in enumerate(self.classes.names) if _is_background(name)]
        self.background = named[0] if named else None
        self._numbers = {there: number for number, there in enumerate(self.classes.ids)}

    def class_of(self, row: Row, what: str) -> int:
        """The class number of a row's ``category_id``.

        Raises:
            DataError: a category that is not in the JSON.
        """
        number = self._numbers.get(whole_number(self.path, row, "category_id"))
        if number is None:
            raise DataError(
                f"{self.path}: {what} has the unknown category {row['category_id']!r}; add it to "
                f"categories"
            )
        return number


def read_json(path: Path, lists: tuple[str, ...]) -> dict[str, Any]:
    """The COCO JSON ``path``, which has these ``lists`` of objects; UTF-8 or UTF-16, BOM or not.

    Raises:
        DataError: missing, no JSON, or without one of them.
    """
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: cannot be read as JSON ({one_line(error)[:200]})") from None
    for key in lists:
        expected = f"{path}: expected a list of objects named {key!r}"
        if not isinstance(content, dict) or key not in content:
            raise LayoutError(expected)
        rows = content[key]
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(expected)
    return content


def rows_of(path: Path, row: Row, key: str) -> list[Row]:
    """The field ``key`` of ``row``: a list of objects.

    Raises:
        DataError: any other value in the file ``path``.
    """
    value = row.get(key)
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise _wrong(path, row, key, "a list of objects")
    return value


def whole_number(path: Path, row: Row, key: str, least: int = 0) -> int:
    """The field ``key`` of ``row``: a whole number from ``least``, also written as 7.0 or "7".

    Raises:
        DataError: any other value in the file ``path``.
    """
    value = _plain(row.get(key))
    if not isinstance(value, int) or not least <= value < 2**53:
        raise _wrong(path, row, key, f"a whole number from {least}")
    return value


def flag(path: Path, row: Row, key: str) -> bool:
    """The field ``key`` of ``row``: 0, 1, true or false; False where it is missing or null.

    Raises:
        DataError: any other value in the file ``path``.
    """
    value = row.get(key) or 0
    if value not in (0, 1) or isinstance(value, str | list | dict):
        raise _wrong(path, row, key, "0 or 1")
    return bool(value)


def is_thing(path: Path, row: Row) -> bool:
    """Whether ``row``, a category of panoptic labels, is a thing.

    Raises:
        DataError: the JSON ``path`` does not say so.
    """
    if row.get("isthing") is None:
        raise DataError(
            f"{path}: category {shown(row.get('name'))} has no isthing; expected 1 where objects "
            f"are counted one by one (car), 0 where they are not (sky)"
        )
    return flag(path, row, "isthing")


def text(path: Path, row: Row, key: str) -> str:
    """The field ``key`` of ``row``: a text, in Unicode's composed form.

    Raises:
        DataError: any other value in the file ``path``.
    """
    value = row.get(key)
    if not isinstance(value, str) or not is_text(value):
        raise _wrong(path, row, key, f"text of 1 to {LONGEST} characters")
    return composed(value)


def _wrong(path: Path, row: Row, key: str, expected: str) -> DataError:
    if key not in row:
        return DataError(f"{path}: an entry has no {key!r}: {shown(row)}")
    return DataError(f"{path}: {key}: expected {expected}, got {shown(row[key])} in {shown(row)}")


def _plain(value: Any) -> Any:
    """An id in one form: 7 for 7.0 and "7"; other text in Unicode's composed form."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        short = len(value) <= 18 and value.isascii() and value.isdigit()
        return int(value) if short and str(int(value)) == value else composed(value)
    return None if isinstance(value, bool) else value


def _key(path: Path, row: Row, key: str) -> Key:
    value = _plain(row.get(key))
    if not isinstance(value, int | str):
        raise _wrong(path, row, key, "a number or a text")
    return value


def _pictures(path: Path, rows: list[Row], images: Path) -> dict[Key, Picture]:
    """Image files of a JSON by their ids, all of them there."""
    files = Files(images)
    found: dict[Key, Picture] = {}
    names: set[str] = set()
    missing: list[str] = []
    for row in rows:
        key, name = _key(path, row, "id"), text(path, row, "file_name")
        stem = PurePosixPath(name.replace("\\", "/")).stem
        if key in found:
            raise DataError(f"{path}: two images have the id {key!r}; the second is {shown(name)}")
        if stem in names:
            raise DataError(
                f"{path}: two images are named {shown(stem)}, the second in file_name "
                f"{shown(name)}; expected names that differ without their folder and ending"
            )
        size = None
        if row.get("height") is not None or row.get("width") is not None:
            height, width = (whole_number(path, row, side, 1) for side in ("height", "width"))
            size = height, width
        file = files.find(name, path)
        if file is None:
            missing.append(name)
        found[key] = Picture(stem, file or images, size)
        names.add(stem)
    if not found:
        raise DataError(f"{path}: no images in it")
    if missing:
        raise DataError(
            f"{images}: {len(missing)} of {len(found)} images of {path.name} are not there, such "
            f"as {missing[0][:80]}"
        )
    return found


def _category(path: Path, row: Row, own_background: bool) -> Row:
    """A category's checked fields."""
    name = text(path, row, "name").strip()
    number = whole_number(path, row, "id")
    if number >= LARGEST_ID:
        raise _wrong(path, row, "id", f"a whole number below {LARGEST_ID}")
    if own_background and row.get("isthing") is None:
        row = {**row, "isthing": 1}
    thing = is_thing(path, row) and not (own_background and _is_background(name))
    return {"id": number, "name": name, "isthing": thing, "group": row.get("supercategory")}


def _is_background(name: str) -> bool:
    return name.strip("_ ").casefold() == BACKGROUND


def _root(rows: list[Row]) -> Row | None:
    """The category that is there only as the supercategory of all others (Roboflow's first)."""
    for row in rows:
        others = [other for other in rows if other is not row]
        if others and all(other["group"] == row["name"] for other in others):
            return row
    return None


def _classes(path: Path, rows: Iterable[Row], own_background: bool) -> Classes:
    rows = sorted(rows, key=lambda row: row["id"])
    for field in ("id", "name"):
        values = [row[field] for row in rows]
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise DataError(f"{path}: category {field} {shown(twice[0])} appears twice")
    if not 1 <= len(rows) < VOID:
        raise DataError(f"{path}: expected 1 to {VOID - 1} categories, got {len(rows)}")
    if own_background and not any(_is_background(row["name"]) for row in rows):
        ids = [row["id"] for row in rows]
        number = 0 if min(ids) > 0 else max(ids) + 1
        rows.append({"id": number, "name": BACKGROUND, "isthing": False})
    return Classes(
        names=tuple(row["name"] for row in rows),
        is_thing=tuple(row["isthing"] for row in rows),
        colors=palette(len(rows) + 1)[1:],
        ids=tuple(row["id"] for row in rows),
    )
