# SPDX-License-Identifier: BSD-3-Clause
"""From a `Sample` of any size to the `Frame` that a network sees: the whole of it, or a part."""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
from PIL import Image

from maskattn_kernels.common.text import quoted
from maskattn_kernels.segmentation.data.errors import DataError, shown
from maskattn_kernels.segmentation.data.sample import VOID, Sample

__all__ = [
    "GREY",
    "Frame",
    "FrameKind",
    "as_frame_kind",
    "as_size",
    "check_whole",
    "cut",
    "frame_size",
    "whole_frame",
]

GREY = 124  # what lies outside of an image, near the mean of photographs
LARGEST_SIDE = 16384
LARGEST_WHOLE = 1 << 22
"""Pixels of an image that a network takes whole at its own size: memory grows with them, and the
time of attention with their square."""

FrameKind: TypeAlias = Literal["fit", "own", "squeeze"]
"""What a whole image becomes before a network sees it, see `frame_size`."""


@dataclass(frozen=True)
class Frame:
    """A sample at the size H x W that a network sees.

    Attributes:
        image: uint8 (H,W,3).
        semantic: uint8 (H,W), class numbers or `VOID`.
        instance: int32 (H,W), 0 = no object.
    """

    image: np.ndarray
    semantic: np.ndarray
    instance: np.ndarray


def as_size(size: Any, name: str = "size") -> tuple[int, int]:
    """Height and width; one number as ``size`` stands for a square. ``name`` is for the error.

    Raises:
        DataError: neither, or a number that is not from 1 to 16384.

    Example:
        >>> as_size(128), as_size([288, 384])
        ((128, 128), (288, 384))
    """
    pair = tuple(size) if isinstance(size, list | tuple) else (size, size)
    whole = (isinstance(n, int | np.integer) and not isinstance(n, bool) for n in pair)
    if len(pair) != 2 or not all(whole) or not all(1 <= n <= LARGEST_SIDE for n in pair):
        raise DataError(
            f"{name}: expected a whole number from 1 to {LARGEST_SIDE}, or height and width, got "
            f"{shown(size)}"
        )
    return int(pair[0]), int(pair[1])


def as_frame_kind(kind: Any) -> FrameKind:
    """The ``kind`` of a frame, if it is one.

    Raises:
        DataError: it is not.
    """
    if kind not in get_args(FrameKind):
        raise DataError(f"frame: expected one of {quoted(get_args(FrameKind))}, got {shown(kind)}")
    return kind


def frame_size(height: int, width: int, size: tuple[int, int], kind: FrameKind) -> tuple[int, int]:
    """Height and width of the frame that a whole image becomes.

    Args:
        height, width: of the image.
        size: height and width that the network is trained on.
        kind: "fit" = scaled to the largest size that lies within ``size``, its aspect kept;
            "own" = as it is; "squeeze" = scaled to exactly ``size``, its aspect lost.

    Example:
        >>> [frame_size(360, 480, (128, 128), kind) for kind in ("fit", "own", "squeeze")]
        [(96, 128), (360, 480), (128, 128)]
    """
    if kind == "own":
        return height, width
    if kind == "squeeze":
        return size
    if height * size[1] >= width * size[0]:  # in whole numbers: exact
        return size[0], max(1, round(width * size[0] / height))
    return max(1, round(height * size[1] / width)), size[1]


def check_whole(name: str, height: int, width: int, kind: FrameKind) -> None:
    """Refuse a frame that is too large to go through a network whole.

    Args:
        name: of the image.
        height, width: of the image.
        kind: of the frame.

    Raises:
        DataError: the frame has the image's own size, of more than 4 million pixels.
    """
    if kind == "own" and height * width > LARGEST_WHOLE:
        raise DataError(
            f"{name}: {width} x {height} pixels; expected at most {LARGEST_WHOLE >> 20} million "
            f"for a frame of its own size: take tiles (--tiles 512), scale it down, or train with "
            f"the frame fit"
        )


def whole_frame(sample: Sample, size: tuple[int, int], kind: FrameKind) -> Frame:
    """The frame of a whole sample: the image antialiased bilinear, labels nearest.

    A sample without labels comes out all `VOID`.

    Args:
        sample: of any size.
        size, kind: as in `frame_size`.

    Raises:
        DataError: of its own size it would have more than 4 million pixels.

    Example:
        >>> from maskattn_kernels.segmentation.data.digit_scenes import DigitScenes
        >>> whole_frame(DigitScenes("val")[0], (48, 64), "fit").image.shape
        (48, 48, 3)
    """
    height, width = sample.image.shape[:2]
    check_whole(sample.name, height, width, kind)
    box = (0.0, 0.0, float(width), float(height))
    return cut(sample, box, frame_size(height, width, size, kind))


def cut(sample: Sample, box: tuple[float, float, float, float], size: tuple[int, int]) -> Frame:
    """A part of a sample.

    Args:
        sample: of any size.
        box: left, top, right and bottom of the part.
        size: height and width that it is resized to.
    """
    height, width = sample.image.shape[:2]
    left, top, right, bottom = box
    rows = _nearest(top, bottom, size[0], height)
    columns = _nearest(left, right, size[1], width)
    image = sample.image
    if (height, width) != size or box != (0, 0, width, height):
        resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR, box)
        image = np.asarray(resized)
    void = np.full(size, VOID, dtype=np.uint8)
    semantic = void if sample.semantic is None else sample.semantic[rows].take(columns, axis=1)
    none = np.zeros(size, dtype=np.int32)
    instance = none if sample.instance is None else sample.instance[rows].take(columns, axis=1)
    return Frame(image, semantic, instance)


def _nearest(low: float, high: float, count: int, limit: int) -> np.ndarray:
    """Which source pixel lies under the middle of each of `count` target pixels."""
    middles = low + (np.arange(count) + 0.5) * (high - low) / count
    return np.clip(middles.astype(np.intp), 0, limit - 1)
