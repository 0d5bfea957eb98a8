# SPDX-License-Identifier: BSD-3-Clause
"""A note on a size of training images that does not suit the images."""

from collections.abc import Mapping

from maskattn_kernels.segmentation.data.frame import FrameKind, frame_size

__all__ = ["frame_advice"]

_WASTE = 0.15  # of the pixels of a training image; below it nobody would change the size
_STEP = 16  # a side that pooling halves four times without a rest


def frame_advice(
    sizes: Mapping[tuple[int, int], int], size: tuple[int, int], kind: FrameKind
) -> list[str]:
    """A line, if much of the training images lies outside of the images.

    Args:
        sizes: images by (width, height).
        size, kind: of training images, as in `frame_size`.

    Example:
        >>> print(*frame_advice({(480, 360): 7}, (128, 128), "fit"))
        25% of the training images lie outside of the images, as void; for 360 x 480 pixels \
--data.size '[112, 144]' would suit
        >>> frame_advice({(480, 360): 7}, (96, 128), "fit")
        []
    """
    images = sum(sizes.values())
    inside = 0.0
    for (wide, high), count in sizes.items():
        height, width = frame_size(high, wide, size, kind)
        inside += count * min(1, height / size[0]) * min(1, width / size[1])
    if not images or inside / images > 1 - _WASTE:
        return []
    wide, high = max(sizes, key=lambda shape: sizes[shape])
    scale = 1.0 if kind == "own" else (size[0] * size[1] / (wide * high)) ** 0.5
    better = [max(_STEP, round(scale * side / _STEP) * _STEP) for side in (high, wide)]
    if kind == "own":
        better = [min(side, most) for side, most in zip(better, size, strict=True)]
    return [
        f"{1 - inside / images:.0%} of the training images lie outside of the images, as void; for "
        f"{high} x {wide} pixels --data.size '{better}' would suit"
    ]
