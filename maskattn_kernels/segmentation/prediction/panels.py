# SPDX-License-Identifier: BSD-3-Clause
"""A picture per image: input, prediction, errors, and where the mask attends at each scale."""

from collections.abc import Sequence
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from maskattn_kernels.segmentation.data.drawing import (
    INK,
    PAPER,
    grey_levels,
    legend,
    overlay,
)
from maskattn_kernels.segmentation.data.fonts import drawable_names, font
from maskattn_kernels.segmentation.data.sample import VOID
from maskattn_kernels.segmentation.results import Attended, Segmentation

__all__ = [
    "attended_picture",
    "draw_panel",
    "error_picture",
    "heat_colors",
    "heat_picture",
    "stacked",
    "tile",
    "tile_row",
]

TILE, THINNEST, GAP, TITLE = 224, 28, 12, 24
RIGHT, WRONG, IGNORED = (222, 235, 228), (208, 48, 62), (236, 236, 236)


@cache
def heat_colors() -> np.ndarray:
    """Colours float32 (256,3), 0 to 255, of scores from the lowest to the highest."""
    from matplotlib import colormaps  # by those who want panels only

    return (colormaps["inferno"](np.linspace(0.25, 1, 256))[:, :3] * 255).astype(np.float32)


def _resized(pixels: np.ndarray, width: int, height: int, smooth: bool = False) -> np.ndarray:
    how = Image.Resampling.BILINEAR if smooth else Image.Resampling.NEAREST
    return np.asarray(Image.fromarray(pixels).resize((width, height), how))


def error_picture(semantic: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Red where ``semantic`` is not the ``truth``, grey where that is void; uint8 (H,W,3)."""
    picture = np.where((semantic == truth)[..., None], RIGHT, WRONG)
    picture[truth == VOID] = IGNORED
    return picture.astype(np.uint8)


def attended_picture(image: np.ndarray, attended: Attended) -> np.ndarray:
    """The ``image`` where a mask ``attended``, tinted by score, else dark; uint8 (H,W,3)."""
    height, width = image.shape[:2]
    chosen = _resized(attended.mask.astype(np.uint8), width, height).astype(bool)[..., None]
    grey = grey_levels(image)
    if attended.score is None:
        return np.where(chosen, image, 0.16 * grey).astype(np.uint8)
    score = attended.score.astype(np.float32)
    low, high = float(score.min()), float(score.max())
    heat = heat_picture(image, (score - low) / max(high - low, 1e-12))
    return np.where(chosen, heat, 0.16 * grey).astype(np.uint8)


def heat_picture(image: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The ``image`` in grey, tinted by ``values`` (h,w) from 0 to 1; uint8 (H,W,3)."""
    height, width = image.shape[:2]
    heat = heat_colors()[_resized((values * 255).astype(np.uint8), width, height)]
    return (0.45 * grey_levels(image) + 0.55 * heat).astype(np.uint8)


def draw_panel(found: Segmentation, truth: np.ndarray | None = None) -> Image.Image:
    """One picture of all there is to see of a segmentation.

    Args:
        found: with ``attended``, whose masks are shown in the order in which they run.
        truth: (H,W), class numbers or `VOID`; None = not known, and no errors are drawn.

    Returns:
        an RGB picture: input, prediction and errors above, a legend, masks below.
    """
    image, semantic, classes = found.image, found.semantic, found.classes
    first = [("input", image), ("prediction", np.asarray(found.overlay()))]
    if truth is not None:
        truth_picture = overlay(image, truth, np.zeros_like(truth), classes)
        wrong = (semantic != truth)[truth != VOID]
        errors = f"errors: {wrong.mean():.1%} of pixels" if wrong.size else "all void: no errors"
        first += [("ground truth", truth_picture), (errors, error_picture(semantic, truth))]
    masks = [
        (f"{name}, {a.mask.shape[0]} x {a.mask.shape[1]}: {a.mask.mean():.0%} kept",
         attended_picture(tile(image), a))
        for name, a in found.attended.items()
    ]  # fmt: skip
    columns = max(len(first), min(len(masks), 4), 2)
    shown = semantic if truth is None else np.concatenate([semantic, truth])
    names = _legend(shown, found, columns * (TILE + GAP) - GAP)
    rows = [tile_row(first)]
    if names is not None:
        rows.append(names)
    rows += [tile_row(masks[i : i + columns]) for i in range(0, len(masks), columns)]
    return stacked(rows)


def stacked(rows: Sequence[Image.Image]) -> Image.Image:
    """All ``rows`` below each other, on white."""
    width = max(row.width for row in rows) + 2 * GAP
    sheet = Image.new("RGB", (width, sum(r.height + GAP for r in rows) + GAP), PAPER)
    top = GAP
    for row in rows:
        sheet.paste(row, (GAP, top))
        top += row.height + GAP
    return sheet


def tile(pixels: np.ndarray) -> np.ndarray:
    """``pixels`` made to fit a tile; small images stay sharp-edged.

    Proportions are kept, but for images of less than `THINNEST` pixels across: those are widened.
    """
    height, width = pixels.shape[:2]
    scale = TILE / max(height, width)
    wide, high = (max(THINNEST, round(side * scale)) for side in (width, height))
    return _resized(pixels, wide, high, smooth=scale < 1)


def tile_row(tiles: Sequence[tuple[str, np.ndarray]]) -> Image.Image:
    """``tiles``, titles and uint8 (H,W,3), beside each other."""
    pictures = [Image.fromarray(tile(pixels)) for _, pixels in tiles]
    height = max(p.height for p in pictures)
    row = Image.new("RGB", (len(tiles) * (TILE + GAP) - GAP, TITLE + height), PAPER)
    draw = ImageDraw.Draw(row)
    for place, ((title, _), picture) in enumerate(zip(tiles, pictures, strict=True)):
        left = place * (TILE + GAP)
        draw.text((left, 2), title, fill=INK, font=font(15, title))
        row.paste(picture, (left, TITLE))
    return row


def _legend(shown: np.ndarray, found: Segmentation, width: int) -> Image.Image | None:
    """Names and colours of the classes that are shown, largest first, with counts of objects."""
    numbers, counts = np.unique(shown[shown != VOID], return_counts=True)
    if not len(numbers):
        return None
    names, entries = drawable_names(found.classes), []
    for number in numbers[np.argsort(-counts, kind="stable")]:
        objects = len(np.unique(found.instance[(found.semantic == number) & (found.instance > 0)]))
        text = names[number] + (f" x {objects}" if objects else "")
        entries.append((text, found.classes.colors[number]))
    return legend(entries, width)
