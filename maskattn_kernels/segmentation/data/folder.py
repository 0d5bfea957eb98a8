# SPDX-License-Identifier: BSD-3-Clause
"""Own data as folders: images/, masks/, classes.yaml and, for objects, instances/."""

from pathlib import Path
from typing import Any

import yaml

from maskattn_kernels.common.text import one_line
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.files import folder, image_files
from maskattn_kernels.segmentation.data.images import read_image, read_labels
from maskattn_kernels.segmentation.data.label_maps import (
    labelled,
    map_ids,
    matched,
    palette,
)
from maskattn_kernels.segmentation.data.sample import VOID, Classes, Sample
from maskattn_kernels.segmentation.data.splits import name_of_split, share_out

__all__ = ["Folder", "read_classes"]

LAYOUT = "images/*, masks/*.png, classes.yaml (or these folders in train/ and val/)"


class Folder:
    """Own images with masks of the same name.

    A mask is a greyscale or palette PNG of class ids. ``instances/`` may hold 8 or 16-bit PNGs with
    the number of each pixel's object, 0 = none. ``classes.yaml`` names the ids::

        classes:
          - {id: 0, name: road}
          - {id: 1, name: car, thing: true, color: [0, 0, 142]}
        void: [255]

    Where there are no folders ``train`` and ``val`` (or ``valid``), about a fifth of the images is
    for validation, chosen by a hash of their names; see `splits.share_out`.

    Args:
        root: the folder with ``classes.yaml``.
        split: "train" or "val".

    Raises:
        DataError: another layout, or files that cannot be used.
    """

    def __init__(self, root: Path, split: str = "train") -> None:
        folder(root, LAYOUT)
        self._advice = f"add it to classes or to void in {root / 'classes.yaml'}"
        self.classes = read_classes(root / "classes.yaml")
        own = name_of_split(root, split)
        place = root / own if own else root
        self._images = image_files(folder(place / "images", LAYOUT))
        masks = folder(place / "masks", LAYOUT)
        self._masks = image_files(masks, (".png",))
        names = matched(self._images, self._masks, masks, "mask")
        self._names = names if own else share_out(names, split, place / "images")
        self._objects: dict[str, Path] = {}
        if (place / "instances").is_dir():
            self._objects = image_files(place / "instances", (".png",))
            matched(self._images, self._objects, place / "instances", "instances")

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Sample:
        name = self._names[index]
        file = self._images[name]
        image = read_image(file)
        path = self._masks[name]
        semantic = map_ids(read_labels(path), self.classes.number_of, path, self._advice)
        if not self._objects:
            return labelled(name, image, semantic, None, self.classes, path, file)
        instance = read_labels(self._objects[name])
        if instance.ndim != 2:
            raise DataError(f"{self._objects[name]}: expected one number a pixel, not colours")
        labelled(name, image, semantic, None, self.classes, path, file)
        return labelled(name, image, semantic, instance, self.classes, self._objects[name], file)


def read_classes(path: Path) -> Classes:
    """The classes and the void ids of the ``classes.yaml`` at ``path``; see `Folder`.

    Raises:
        DataError: missing, no YAML, or entries of another form.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; expected the layout {LAYOUT}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read as YAML ({one_line(error)})") from None
    rows = content.get("classes") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not 1 <= len(rows) <= VOID:
        raise DataError(f"{path}: expected a list `classes` of 1 to {VOID} entries")
    void = content.get("void", [VOID])
    if not isinstance(void, list) or not all(_is_id(number) for number in void):
        raise DataError(f"{path}: void: expected a list of ids, got {void!r}")
    colors = palette(len(rows) + 1)[1:]
    parsed = [_class(row, place, colors[place], path) for place, row in enumerate(rows)]
    names, things, chosen, ids = zip(*parsed, strict=True)
    for what, values in (("name", names), ("id", (*ids, *void))):
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise DataError(f"{path}: {what} {twice[0]!r} appears twice")
    return Classes(names, things, chosen, ids, tuple(void))


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 65535


def _class(
    row: Any, place: int, color: tuple[int, int, int], path: Path
) -> tuple[str, bool, tuple[int, int, int], int]:
    """Name, thing, colour and id of one entry, which may be a name alone."""
    if isinstance(row, str):
        return row, False, color, place
    entry = {"id": place, "thing": False, "color": color, **row} if isinstance(row, dict) else {}
    shade = entry.get("color")
    good = (
        set(entry) == {"id", "thing", "color", "name"}
        and isinstance(entry["name"], str)
        and isinstance(entry["thing"], bool)
        and _is_id(entry["id"])
        and isinstance(shade, list | tuple)
        and len(shade) == 3
        and all(isinstance(level, int) and 0 <= level <= 255 for level in shade)
    )
    if not good:
        raise DataError(f"{path}: expected {{id: 1, name: car, thing: true}}, got {row!r}")
    red, green, blue = entry["color"]
    return entry["name"], entry["thing"], (red, green, blue), entry["id"]
