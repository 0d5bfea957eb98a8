# SPDX-License-Identifier: BSD-3-Clause
"""Finding the files of a data set: by name, inside their folder, and what is passed over there."""

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from PIL import Image

from maskattn_kernels.segmentation.data.errors import DataError, LayoutError, shown

__all__ = [
    "LONGEST",
    "Files",
    "composed",
    "folder",
    "has_images",
    "image_endings",
    "image_files",
    "is_text",
    "passed_over",
    "unlisted",
]

_ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".bmp", ".webp", ".tif", ".tiff"),
    *(".gif", ".avif", ".jp2", ".pgm", ".ppm", ".pnm"),
)
LONGEST = 500
"""Characters of a name."""
_OF_THE_SYSTEM = ("thumbs.db", "desktop.ini")


def image_endings() -> tuple[str, ...]:
    """Endings of the files that are taken for images: those that this Pillow can read."""
    readable = Image.registered_extensions()
    return tuple(ending for ending in _ENDINGS if ending in readable)


def composed(text: str) -> str:
    """``text`` in Unicode's composed form, so that names agree whichever system wrote them."""
    return unicodedata.normalize("NFC", text)


def is_text(text: str) -> bool:
    """Whether ``text`` can be a name: not blank, not longer than `LONGEST`, no control character.

    Narrow and other odd spaces are no fault: macOS writes them into names of screenshots.
    """
    bad = any(unicodedata.category(character) in ("Cc", "Cs") for character in text)
    return 0 < len(text.strip()) <= LONGEST and not bad


def folder(path: Path, layout: str) -> Path:
    """The path, if it is a folder.

    Args:
        path: that must be there.
        layout: the files that the data set must have, for the error.

    Raises:
        LayoutError: it is not there, or no folder.
    """
    if not path.is_dir():
        what = "not a folder" if path.exists() else "no such folder"
        raise LayoutError(f"{path}: {what}; expected the layout {layout}")
    return path


def image_files(where: Path, endings: Iterable[str] | None = None) -> dict[str, Path]:
    """The image files right in a folder, by name without ending, sorted.

    Args:
        where: the folder.
        endings: of the files to take, in lower case; None = `image_endings`.

    Raises:
        DataError: none, or two of one name (a.jpg and a.png).
    """
    found: dict[str, Path] = {}
    known = image_endings() if endings is None else tuple(endings)
    for path in sorted(where.iterdir()):
        if _is_image(path, known):
            name = composed(path.stem)
            if name in found:
                raise DataError(
                    f"{where}: two files named {name}: {found[name].name} and {path.name}"
                )
            found[name] = path
    if not found:
        others = "; ".join(("", *passed_over(where, known)))
        raise DataError(f"{where}: no images there (files ending in {' '.join(known)}){others}")
    return found


def _is_image(path: Path, endings: Iterable[str]) -> bool:
    """Whether ``path`` is taken for an image; files that begin with a dot are of the system."""
    return path.suffix.lower() in endings and path.name[0] != "." and not path.is_dir()


def has_images(where: Path) -> bool:
    """Whether `image_files` finds any right in the folder ``where``."""
    known = image_endings()
    return any(
        path.suffix.lower() in known and not path.name.startswith(".") for path in where.iterdir()
    )


def passed_over(
    where: Path, endings: Iterable[str] | None = None, *, folders: bool = True
) -> tuple[str, ...]:
    """A line on what is not looked at in the folder ``where``, if there is anything.

    Args:
        where: a folder of images.
        endings: of the files that are taken; None = `image_endings`.
        folders: whether folders inside count as passed over.
    """
    known = image_endings() if endings is None else tuple(endings)
    kinds: Counter[str] = Counter()
    inside = []
    for path in sorted(where.iterdir()):
        if path.name.startswith(".") or path.name.lower() in _OF_THE_SYSTEM:
            continue
        if path.is_dir():
            inside.append(path.name)
        elif path.suffix.lower() not in known:
            kinds[path.suffix.lower() or "without ending"] += 1
    parts = []
    if kinds:
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
        parts.append(f"{kinds.total()} files passed over ({listed})")
    if folders and inside:
        parts.append(f"{len(inside)} folders not looked into, such as {shown(inside[0])}")
    return (f"{where}: {' and '.join(parts)}",) if parts else ()


def unlisted(where: Path, used: Iterable[Path], path: Path) -> tuple[str, ...]:
    """A line on images in the folder ``where`` that are not ``used`` by the JSON ``path``."""
    known, endings = {*used}, image_endings()
    images = [file for file in sorted(where.iterdir()) if _is_image(file, endings)]
    left = [shown(file.name) for file in images if file not in known]
    if not left:
        return ()
    return (f"{path}: {len(left)} images of {where} are not in it, such as {left[0]}",)


class Files:
    """The files of a folder that a JSON names.

    A name may begin with the name of the folder itself, may have backslashes, and may lack its
    ending where only one file has that name.

    Args:
        where: the folder.
    """

    def __init__(self, where: Path) -> None:
        self._where = where
        self._listed: dict[Path, dict[str, Path]] = {}

    def find(self, name: str, path: Path) -> Path | None:
        """The file of a name, or None.

        Args:
            name: relative to the folder.
            path: of the JSON, for the error.

        Raises:
            DataError: the name leaves the folder.
        """
        inside = PurePosixPath(name.replace("\\", "/"))
        if inside.is_absolute() or ".." in inside.parts or PureWindowsPath(name).drive:
            raise DataError(
                f"{path}: file_name {shown(name)} leaves the folder {self._where}; expected a name "
                f"inside it"
            )
        places = [self._where / inside]
        if inside.parts[:1] == (self._where.name,):
            places.append(self._where.parent / inside)
        for place in places:
            if os.path.isfile(place):
                return place
            listed = self._names(place.parent)
            if composed(place.name) in listed:
                return listed[composed(place.name)]
            if not place.suffix:
                stems = [path for name, path in listed.items() if Path(name).stem == place.name]
                if len(stems) == 1:
                    return stems[0]
        return None

    def _names(self, where: Path) -> dict[str, Path]:
        if where not in self._listed:
            there = where.iterdir() if os.path.isdir(where) else ()
            self._listed[where] = {composed(path.name): path for path in there if path.is_file()}
        return self._listed[where]
