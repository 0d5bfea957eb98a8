# SPDX-License-Identifier: BSD-3-Clause
"""Fonts for the texts in pictures, also for names in scripts that Pillow's own font has not."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from PIL import ImageFont

from maskattn_kernels.segmentation.data.sample import Classes

__all__ = ["drawable_names", "font", "without_font"]

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
#: Parts of the names of system fonts that have many scripts.
_RICH = "cjk sourcehan wqy notosans msyh simhei pingfang hiragino meiryo malgun arialuni".split()


def font(size: int, text: str = "") -> Font:
    """The font of all pictures, at a ``size`` in pixels; or the first one that has all of ``text``.

    Pillow's own comes first, then matplotlib's, then those of the system. If no font has the text,
    it is Pillow's.
    """
    return _found(text, size) or ImageFont.load_default(size)


def drawable_names(classes: Classes) -> tuple[str, ...]:
    """The names of ``classes``; "class ID" for a name that no font here has.

    Example:
        >>> classes = Classes(("sky", "\\ue123"), (False, True), ((0, 0, 9), (9, 0, 0)), (1, 7))
        >>> drawable_names(classes)
        ('sky', 'class 7')
    """
    return tuple(
        name if _found(name, 14) else f"class {there}"
        for name, there in zip(classes.names, classes.ids, strict=True)
    )


def without_font(classes: Classes) -> tuple[str, ...]:
    """A line on the names of ``classes`` that no font here has, if there are any."""
    drawn = zip(classes.names, drawable_names(classes), strict=True)
    changed = [f"{name!r} as {shown!r}" for name, shown in drawn if name != shown]
    if not changed:
        return ()
    count = "" if len(changed) == 1 else f" and {len(changed) - 1} more"
    return (
        f"pictures show {changed[0]}{count}: no font here has these letters; install one such as "
        f"Noto Sans CJK",
    )


@cache
def _found(text: str, size: int) -> Font | None:
    return next((known for known in _fonts(size) if _has(known, text)), None)


def _fonts(size: int) -> Iterator[Font]:
    yield ImageFont.load_default(size)
    try:
        from matplotlib import font_manager, get_data_path
    except ModuleNotFoundError:  # pictures without heat maps do without it
        return
    yield ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
    for path in sorted(font_manager.findSystemFonts()):
        if any(part in Path(path).stem.lower().replace(" ", "") for part in _RICH):
            try:
                yield ImageFont.truetype(path, size)
            except OSError:  # a font that FreeType cannot read
                continue


def _has(known: Font, text: str) -> bool:
    if not isinstance(known, ImageFont.FreeTypeFont):  # Pillow without FreeType
        return text.isascii()
    missing = bytes(known.getmask("\U0010ffff"))
    letters = {letter for letter in text if not letter.isspace()}
    return all(bytes(known.getmask(letter)) != missing for letter in letters)
