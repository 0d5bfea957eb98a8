# SPDX-License-Identifier: BSD-3-Clause
"""The sizes of a U-Net, from full resolution down: strides and channels of encoder and decoder."""

from typing import Any, NamedTuple

__all__ = ["Level", "levels_around", "own_levels"]


class Level(NamedTuple):
    """One size of a U-Net.

    Attributes:
        number: its place among the encoder's maps, for names of scales.
        stride: pixels of the image in a place of its maps.
        encoder: channels of the encoder's map.
        skip: channels of that map as the decoder joins it.
        decoder: channels of the decoder's map.
    """

    number: int
    stride: int
    encoder: int
    skip: int
    decoder: int


def own_levels(width: int, depth: int) -> list[Level]:
    """The levels of the U-Net's own encoder.

    Args:
        width: channels at full resolution: w, 2w, 4w, .., the deepest level as the one above it.
        depth: how often the size is halved.

    Example:
        >>> from maskattn_kernels.models.levels import own_levels
        >>> [(level.stride, level.encoder) for level in own_levels(16, 3)]
        [(1, 16), (2, 32), (4, 64), (8, 64)]
    """
    channels = [width * 2 ** min(i, max(depth - 1, 1)) for i in range(depth + 1)]
    above = [channels[0], *channels[:-2], channels[-1]]
    return [
        Level(i, 2**i, own, own, decoder)
        for i, (own, decoder) in enumerate(zip(channels, above, strict=True))
    ]


def levels_around(encoder: Any, width: int, finest: int, attend_from: int) -> list[Level]:
    """The levels of a U-Net around another encoder.

    The map of an encoder gets the decoder's channels where it is attended to, where it has more,
    and at the deepest level, where the decoder starts from it; else it keeps its own.

    Args:
        encoder: from `as_encoder`.
        width: channels of the decoder's finest level: w, 1.5w, 2w, 3w, 4w, .. down to the deepest.
        finest: lowest stride of a map that is used.
        attend_from: lowest stride with attention.

    Raises:
        ValueError: fewer than two maps are left.

    Example:
        >>> from maskattn_kernels.models import EfficientNetLite0
        >>> from maskattn_kernels.models.levels import levels_around
        >>> for level in levels_around(EfficientNetLite0(), width=32, finest=4, attend_from=8):
        ...     print(tuple(level))
        (2, 4, 24, 24, 32)
        (3, 8, 40, 48, 48)
        (4, 16, 112, 64, 64)
        (5, 32, 320, 96, 96)
    """
    maps = enumerate(zip(encoder.strides, encoder.channels, strict=True), start=1)
    used = [(number, *map) for number, map in maps if map[0] >= finest]
    if len(used) < 2:
        raise ValueError(
            f"finest: expected a stride of the encoder's maps, {tuple(encoder.strides)}, but the "
            f"last, got {finest}"
        )
    levels = []
    for i, (number, stride, channels) in enumerate(used):
        decoder = width * (2, 3)[i % 2] * 2 ** (i // 2) // 2
        is_own = stride < attend_from and channels <= decoder and i < len(used) - 1
        levels.append(Level(number, stride, channels, channels if is_own else decoder, decoder))
    return levels
