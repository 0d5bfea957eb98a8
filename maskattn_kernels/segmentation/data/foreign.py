# SPDX-License-Identifier: BSD-3-Clause
"""Own data in the layout of another tool: which one it is, and how it becomes one that is read."""

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["foreign_hint"]

_LOOKED_AT = 5  # JSON files of a folder
_YOLO = ("labels/*.txt", "labels/*/*.txt", "*/labels/*.txt")


def foreign_hint(root: Path, name: str) -> str:
    """What to do with data in another tool's layout, as the end of an error; "" = unknown.

    Args:
        root: the folder that does not have the expected layout.
        name: of the data set whose layout was expected.
    """
    if not root.is_dir():
        return ""
    for layout in _LAYOUTS:
        if layout.reader != name and layout.seen(root):
            use = f": use --data {layout.reader}" if layout.reader else ""
            return f"; {layout.hint}{use}"
    return ""


def _has(*names: str) -> Callable[[Path], bool]:
    return lambda root: all(any(root.glob(name)) for name in names)


def _json_with(*keys: str) -> Callable[[Path], bool]:
    """Whether a JSON right in the folder, or one folder deeper, begins an object of these keys."""

    def seen(root: Path) -> bool:
        files = (
            *islice(root.glob("*.json"), _LOOKED_AT),
            *islice(root.glob("*/*.json"), _LOOKED_AT),
        )
        return any(all(key in _first_object(path) for key in keys) for path in files)

    return seen


def _first_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    content = content[0] if isinstance(content, list) and content else content
    return content if isinstance(content, dict) else {}


def _unread_coco(root: Path) -> bool:
    named = _has("annotations.json"), _has("train.json"), _has("val.json")
    return not any(seen(root) for seen in named) and _is_coco(root)


class _Layout(NamedTuple):
    """A layout, ``seen`` in a root; ``reader`` is the data set that reads it as it is."""

    seen: Callable[[Path], bool]
    hint: str
    reader: str = ""


_is_coco = _json_with("images", "annotations", "categories")
_LAYOUTS = (
    _Layout(
        _has("JPEGImages", "SegmentationClass"),
        "this is PASCAL VOC's layout: rename JPEGImages to images and SegmentationClass to masks, "
        "and write classes.yaml with the color of each class in labelmap.txt",
    ),
    _Layout(
        _json_with("shapes", "imagePath"),
        "these are labelme's files: convert them with labelme's own labelme2coco.py, and use "
        "--data coco-json",
    ),
    _Layout(
        _json_with("data", "annotations"),
        "this is Label Studio's JSON: export the project as COCO with images, and use "
        "--data coco-json",
    ),
    _Layout(
        _json_with("items", "categories"),
        "this is Datumaro's own JSON: export the project as COCO, and use --data coco-json",
    ),
    _Layout(
        _has("annotations.xml"),
        "this is CVAT's XML: export the task as COCO 1.0, and use --data coco-json",
    ),
    _Layout(
        _has("meta.json", "*/ann"),
        "this is Supervisely's layout: export the project as COCO, and use --data coco-json",
    ),
    _Layout(
        lambda root: any(root.glob("_classes.csv")) or any(root.glob("*/_classes.csv")),
        "these are Roboflow's masks: export the version as COCO Segmentation, and use "
        "--data coco-json",
    ),
    _Layout(
        _has("classes.yaml", "masks"),
        "this is the layout of own folders",
        reader="folder",
    ),
    _Layout(
        _has("annotations/instances_train2017.json"),
        "this is COCO's own layout, which --set labels=instances can read",
        reader="coco",
    ),
    _Layout(
        _is_coco,
        "there is a COCO JSON",
        reader="coco-json",
    ),
    _Layout(
        _unread_coco,
        "there are COCO JSONs of other names: rename them to train.json and val.json",
    ),
    _Layout(
        lambda root: any(_has(form)(root) for form in _YOLO),
        "these are YOLO's labels: export the project as COCO, and use --data coco-json",
    ),
)
