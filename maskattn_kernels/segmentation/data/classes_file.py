# SPDX-License-Identifier: BSD-3-Clause
"""``classes.yaml``: the classes of own data, their ids and colours in masks, and what is void."""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from maskattn_kernels.common.text import one_line
from maskattn_kernels.segmentation.data.errors import DataError, LayoutError, shown
from maskattn_kernels.segmentation.data.files import composed, is_text
from maskattn_kernels.segmentation.data.label_maps import palette
from maskattn_kernels.segmentation.data.sample import VOID, Classes

__all__ = ["LARGEST_ID", "ClassesFile", "Color", "read_classes"]

LARGEST_ID = 65535
"""Of a mask's 16 bits."""
Color = tuple[int, int, int]
_KEYS = ("classes", "void")
_ENTRY_KEYS = ("id", "name", "thing", "color")
_INT = "tag:yaml.org,2002:int"


@dataclass(frozen=True)
class ClassesFile:
    """What a ``classes.yaml`` says.

    Attributes:
        classes: with their ids, and those of void.
        number_of_color: the class number, or `VOID`, of each colour that the file itself gives.
    """

    classes: Classes
    number_of_color: Mapping[Color, int]


def read_classes(path: Path) -> ClassesFile:
    """Read the ``classes.yaml`` at ``path``, in UTF-8, or in UTF-16 with a BOM.

    Raises:
        DataError: missing, no YAML, or an entry of another form; the line names the field.
    """
    content = _load(path)
    content = content if isinstance(content, dict) else {}
    rows = content.get("classes")
    if not isinstance(rows, list) or not 1 <= len(rows) <= VOID:
        got = f", got {shown(rows)}" if rows else ""
        yolo = " (`names:` is a key of YOLO's files)" if "names" in content else ""
        raise DataError(f"{path}: expected a list `classes` of 1 to {VOID} entries{got}{yolo}")
    _check_keys(path, "", content, _KEYS)
    colors = palette(len(rows) + 1)[1:]
    entries = [_Entry(path, place, row) for place, row in enumerate(rows)]
    ids = tuple(entry.number() for entry in entries)
    void_ids, void_colors = _void(path, content, ids)
    given = [entry.color() for entry in entries]
    names = tuple(entry.name() for entry in entries)
    given_colors = [color for color in (*given, *void_colors) if color]
    _check_once(path, "name", names)
    _check_once(path, "id", ids)
    _check_once(path, "color", [list(color) for color in given_colors])
    both = sorted({*ids} & {*void_ids})
    if both:
        raise DataError(f"{path}: id {both[0]} is in classes and in void; expected it in one")
    classes = Classes(
        names=names,
        is_thing=tuple(entry.thing() for entry in entries),
        colors=tuple(own or color for own, color in zip(given, colors, strict=True)),
        ids=ids,
        void_ids=void_ids,
    )
    numbers = {color: number for number, color in enumerate(given) if color}
    return ClassesFile(classes, numbers | dict.fromkeys(void_colors, VOID))


class _Loader(yaml.SafeLoader):
    """YAML without its traps: a key counts once, and 010 is text and not eight."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        """The mapping of ``node``, if no key of it appears twice; ``deep`` is PyYAML's."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = [key for key in keys if keys.count(key) > 1]
        if twice:
            raise yaml.constructor.ConstructorError(
                problem=f"the key {shown(twice[0])} appears twice", problem_mark=node.start_mark
            )
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if tag != _INT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_INT, re.compile(r"[-+]?(?:0|[1-9][0-9]*)$"), [*"-+0123456789"])


def _load(path: Path) -> Any:
    try:
        return yaml.load(path.read_bytes(), _Loader)
    except FileNotFoundError:
        raise LayoutError(f"{path}: no such file") from None
    except (yaml.reader.ReaderError, UnicodeDecodeError) as error:
        reason = one_line(error)[:200]
        raise DataError(f"{path}: cannot be read ({reason}); save it as UTF-8") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = one_line(error)[:200]
        raise DataError(f"{path}: cannot be read as YAML ({reason})") from None


def _check_keys(path: Path, where: str, found: Iterable[Any], known: Collection[str]) -> None:
    for key in found:
        if key not in known:
            close = get_close_matches(str(key)[:40], known, n=1, cutoff=0.5)
            expected = f"did you mean {close[0]}?" if close else f"expected {', '.join(known)}"
            raise DataError(f"{path}: {where}unknown key {shown(key)}; {expected}")


def _check_once(path: Path, what: str, values: Iterable[Any]) -> None:
    listed = list(values)
    for value in listed:
        if listed.count(value) > 1:
            raise DataError(f"{path}: {what} {shown(value)} appears twice")


def _void(path: Path, content: dict[str, Any], ids: Collection[int]) -> tuple[Any, list[Color]]:
    """Ids and colours of void; `VOID` itself where the file does not say and no class has it."""
    if "void" not in content:
        return ((VOID,) if VOID not in ids else ()), []
    void = content["void"]
    if not isinstance(void, list) or not all(_is_id(v) or _as_color(v) for v in void):
        raise DataError(f"{path}: void: expected a list of ids, such as [255], got {shown(void)}")
    return tuple(v for v in void if _is_id(v)), [c for v in void if (c := _as_color(v))]


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_ID


def _as_color(value: object) -> Color | None:
    if not isinstance(value, list) or len(value) != 3:
        return None
    if not all(_is_id(level) and level <= 255 for level in value):
        return None
    red, green, blue = value
    return red, green, blue


class _Entry:
    """An entry of ``classes``, which may be a name alone; each method checks one field."""

    def __init__(self, path: Path, place: int, row: Any) -> None:
        self._where = f"{path}: classes, entry {place + 1}: "
        self._place = place
        self._row = {"name": row} if isinstance(row, str) else row
        if not isinstance(self._row, dict):
            raise self._wrong("expected {id: 1, name: car, thing: true}", row)
        _check_keys(path, f"classes, entry {place + 1}: ", self._row, _ENTRY_KEYS)

    def _wrong(self, expected: str, value: object) -> DataError:
        return DataError(f"{self._where}{expected}, got {shown(value)}")

    def name(self) -> str:
        value = self._row.get("name")
        if value is not None and not isinstance(value, str | list | dict):
            raise DataError(
                f"{self._where}name: expected text, got {shown(value)}, as YAML reads it (yes, no, "
                f"on, off, numbers and dates); put it in quotes"
            )
        if not isinstance(value, str) or not is_text(value):
            raise self._wrong("name: expected text", value)
        return composed(value.strip())

    def number(self) -> int:
        value = self._row.get("id", self._place)
        if not _is_id(value):
            raise self._wrong(f"id: expected a whole number from 0 to {LARGEST_ID}", value)
        return int(value)

    def thing(self) -> bool:
        value = self._row.get("thing", False)
        if not isinstance(value, bool):
            raise self._wrong("thing: expected true or false", value)
        return value

    def color(self) -> Color | None:
        value = self._row.get("color")
        color = _as_color(value)
        if value is not None and color is None:
            raise self._wrong("color: expected [red, green, blue], each 0 to 255", value)
        return color
