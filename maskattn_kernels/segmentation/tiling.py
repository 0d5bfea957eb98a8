# SPDX-License-Identifier: BSD-3-Clause
"""Images at their own pixels in tiles: all of them, or those where a first look is least sure.

The second way is the hybrid: the whole image goes through the network at low resolution, and then
only the tiles that cover most of the entropy go through it again at full resolution.
"""

from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from maskattn_kernels.common.background import batched
from maskattn_kernels.common.command_line import fraction, height_and_width
from maskattn_kernels.segmentation.data.errors import DataError, shown
from maskattn_kernels.segmentation.data.frame import LARGEST_WHOLE, as_size
from maskattn_kernels.segmentation.model.measures import pixel_entropy
from maskattn_kernels.segmentation.model.network import Outputs
from maskattn_kernels.segmentation.model.tiles import Blend, TilePlan

__all__ = ["OVERLAP", "Tiling", "add_tile_arguments", "least_sure", "shares", "through_tiles"]

OVERLAP = 0.25
MOST_OVERLAP = 0.9


@dataclass(frozen=True, init=False)
class Tiling:
    """How images are cut into tiles.

    Attributes:
        size: height and width of a tile, in pixels of the image.
        overlap: share of a tile's side that its neighbour covers too, 0 to 0.9.
        share: of an image's tiles that are computed after the image was seen whole, 0 to 1; None =
            all tiles, without that.

    Raises:
        ValueError: a value is outside of its range.
    """

    size: tuple[int, int]
    overlap: float
    share: float | None

    def __init__(
        self,
        size: int | tuple[int, int],
        overlap: float = OVERLAP,
        share: float | None = None,
    ) -> None:
        set_once = object.__setattr__  # the class is frozen
        set_once(self, "size", as_size(size, "tiles"))
        set_once(self, "overlap", overlap)
        set_once(self, "share", share)
        if self.size[0] * self.size[1] > LARGEST_WHOLE:
            raise ValueError(
                f"tiles: expected at most {LARGEST_WHOLE >> 20} million pixels in a tile, got "
                f"{self.size[0]} x {self.size[1]}"
            )
        for name, value, most in (
            ("overlap", self.overlap, MOST_OVERLAP),
            ("hybrid", 0 if self.share is None else self.share, 1),
        ):
            if not isinstance(value, int | float | np.floating) or not 0 <= value <= most:
                raise ValueError(f"{name}: expected a number from 0 to {most}, got {shown(value)}")

    def plan(self, name: str, image: tuple[int, int], classes: int) -> TilePlan:
        """The tiles of an image.

        Args:
            name: of the image, for the error.
            image: height and width.
            classes: that the network tells apart.

        Raises:
            DataError: the image lies within one tile, and is not just as large.
        """
        plan = TilePlan(image, self.size, self.overlap, classes)
        if plan.count == 1 and image != self.size:
            raise DataError(
                f"{name}: {image[1]} x {image[0]} pixels, which lie within one tile of "
                f"{self.size[1]} x {self.size[0]}; choose smaller tiles, or none for this image"
            )
        return plan

    def chosen(self, plan: TilePlan, whole: Outputs | None) -> list[int]:
        """The numbers of the tiles to compute.

        Args:
            plan: of the image.
            whole: outputs (1,..) for the image seen whole, if it was: then only ``share`` of the
                tiles, rounded, those that cover most of the entropy of the classes.
        """
        if whole is None or self.share is None:
            return list(range(plan.count))
        return least_sure(plan, whole.semantic, self.share)


def least_sure(plan: TilePlan, logits: Tensor, share: float) -> list[int]:
    """The tiles that together cover most of the entropy of the classes, by number.

    Args:
        plan: of the image.
        logits: (1,C,h,w) of the whole image at any size.
        share: of the tiles, 0 to 1, rounded to whole tiles.
    """
    return plan.covering(pixel_entropy(logits)[0], int(share * plan.count + 0.5))


def through_tiles(
    network: Callable[[Tensor], Outputs],
    pixels: Tensor,
    plan: TilePlan,
    tiles: Sequence[int],
    together: int,
    whole: Outputs | None = None,
) -> Outputs:
    """The outputs for an image, by tiles of it.

    Args:
        network: takes images (B,3,h,w).
        pixels: (3,H,W), on its device.
        plan: of the tiles.
        tiles: numbers of those that go through the network, ``together`` at a time.
        whole: outputs (1,..) for the whole image, see `Blend.outputs`.
    """
    blend = Blend(plan)
    for part in batched(tiles, together):
        blend.add(part, network(plan.cut(pixels, part)))
    return blend.outputs(whole)


def add_tile_arguments(parser: ArgumentParser) -> None:
    """Give a command the arguments ``--tiles`` and ``--overlap``.

    Args:
        parser: of the command.
    """
    parser.add_argument(
        "--tiles",
        type=height_and_width,
        metavar="SIDE",
        help="images at their own pixels, in tiles of SIDE x SIDE, or of HEIGHTxWIDTH",
    )
    parser.add_argument(
        "--overlap",
        type=fraction,
        default=OVERLAP,
        help=f"share of a tile that its neighbour covers too (default {OVERLAP})",
    )


def shares(text: str) -> tuple[float, ...]:
    """The ``text`` of an argument as numbers from 0 to 1, separated by commas."""
    return tuple(fraction(part) for part in text.split(","))
