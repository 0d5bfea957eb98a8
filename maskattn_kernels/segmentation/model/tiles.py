# SPDX-License-Identifier: BSD-3-Clause
"""An image in overlapping tiles: where they lie, and how the outputs for them become one."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from maskattn_kernels.segmentation.model.network import Outputs

__all__ = ["Blend", "TilePlan"]

_MOST_LOGITS = 1 << 27  # 512 MB; the outputs of a larger image are blended on a coarser grid
_LEAST = 1e-6  # weight of a tile at its border, so that no place is without weight
#: What tiles count where the whole image was seen as well, the rest is the whole image's: it knows
#: the surroundings, and tiles know the detail. Small objects are seen in tiles alone.
_BESIDE_WHOLE = {"semantic": 0.5, "center": 1.0, "offset": 1.0, "distance": 1.0}
_MAPS = tuple(_BESIDE_WHOLE)
#: From this share of the weight of all tiles on, those that were computed count in full; below it,
#: near the border of one whose neighbour is missing, they fade into the whole image.
_FULL = 0.1


class _Side(NamedTuple):
    """The tiles along one side of an image, and the cells of the grid that each of them covers.

    Attributes:
        starts: first pixel of each tile.
        length: pixels of a tile.
        cells: of each tile, those whose middle lies in it.
        places: of each tile, where in it these middles are, in pixels from its first.
        weights: of each tile for its cells; at every cell those of all tiles add up to 1.
    """

    starts: list[int]
    length: int
    cells: list[slice]
    places: list[Tensor]
    weights: list[Tensor]


@dataclass(frozen=True)
class TilePlan:
    """Where the tiles of an image lie.

    Tiles of one size are spread evenly over the image. Their outputs are blended on a grid: its
    cells are the pixels of the image, or larger if the logits would not fit into 512 MB.

    Attributes:
        image: height and width.
        size: of a tile; a side that is longer than the image is cut.
        overlap: least share of a tile's side that its neighbour covers too.
        classes: that the network tells apart.

    Example:
        >>> plan = TilePlan((360, 480), (192, 256), overlap=0.25, classes=11)
        >>> plan.count, plan.grid, plan.places[:4]
        (9, (360, 480), [(0, 0), (0, 112), (0, 224), (84, 0)])
    """

    image: tuple[int, int]
    size: tuple[int, int]
    overlap: float
    classes: int
    grid: tuple[int, int] = field(init=False)
    rows: _Side = field(init=False, repr=False)
    columns: _Side = field(init=False, repr=False)

    def __post_init__(self) -> None:
        pixels = self.image[0] * self.image[1]
        cell = max(1.0, math.sqrt(pixels * self.classes / _MOST_LOGITS))
        high, wide = (max(1, int(side / cell)) for side in self.image)
        set_once = object.__setattr__  # the class is frozen
        set_once(self, "grid", (high, wide))
        set_once(self, "rows", _side(self.image[0], self.size[0], self.overlap, high))
        set_once(self, "columns", _side(self.image[1], self.size[1], self.overlap, wide))

    @property
    def places(self) -> list[tuple[int, int]]:
        """The first row and column of each tile, row by row."""
        return [(top, left) for top in self.rows.starts for left in self.columns.starts]

    @property
    def count(self) -> int:
        """How many tiles the image has."""
        return len(self.rows.starts) * len(self.columns.starts)

    def cut(self, pixels: Tensor, tiles: Sequence[int]) -> Tensor:
        """Tiles of an image.

        Args:
            pixels: (3,H,W).
            tiles: their numbers, row by row from 0.

        Returns:
            (B,3,h,w), in the order of ``tiles``.
        """
        height, width = self.rows.length, self.columns.length
        places = self.places
        return torch.stack(
            [
                pixels[:, top : top + height, left : left + width]
                for top, left in (places[number] for number in tiles)
            ]
        )

    def covering(self, worth: Tensor, count: int) -> list[int]:
        """The tiles that cover most of what is worth it, together.

        They are taken one by one, each for what those before it leave: tiles overlap, and what one
        has seen is worth nothing to the next.

        Args:
            worth: (h,w) over the image at any size, not negative.
            count: of tiles.

        Returns:
            their numbers, ascending; of equal ones the first.
        """
        worth = worth.double().cpu()
        rows, columns = (
            _side(length, tile, self.overlap, cells)
            for length, tile, cells in zip(self.image, self.size, worth.shape, strict=True)
        )
        covered = torch.zeros_like(worth)

        def gain(number: int) -> float:
            where, weight = _cells(rows, columns, number)
            more = _trust(covered[where] + weight) - _trust(covered[where])
            return float((more * worth[where]).sum())

        # What a tile adds only falls as others are taken: one that leads when counted anew is best.
        waiting = [(-gain(number), number) for number in range(self.count)]
        heapq.heapify(waiting)
        taken: list[int] = []
        while len(taken) < count:
            number = heapq.heappop(waiting)[1]
            again = (-gain(number), number)
            if waiting and waiting[0] < again:
                heapq.heappush(waiting, again)
                continue
            where, weight = _cells(rows, columns, number)
            covered[where] += weight
            taken.append(number)
        return sorted(taken)


class Blend:
    """The outputs for an image, from those for its tiles.

    A tile counts most in its middle, by squared sines, and least at its border, where it knows
    least of what is around. At every place the weights of all tiles add up to 1.

    Args:
        plan: of the tiles.

    Example:
        >>> from maskattn_kernels.segmentation.model.network import SegmentationNetwork
        >>> network = SegmentationNetwork(2, task="semantic", width=4, depth=1).eval()
        >>> plan, image = TilePlan((40, 60), (32, 32), 0.25, classes=2), torch.rand(3, 40, 60)
        >>> blend = Blend(plan)
        >>> with torch.inference_mode():
        ...     blend.add(range(plan.count), network(plan.cut(image, range(plan.count))))
        >>> blend.outputs().semantic.shape
        torch.Size([1, 2, 40, 60])
    """

    def __init__(self, plan: TilePlan) -> None:
        self.plan = plan
        self._totals: dict[str, Tensor] = {}
        self._pooled: list[Tensor] = []
        self._covered: Tensor | None = None

    def add(self, tiles: Sequence[int], outputs: Outputs) -> None:
        """Add the ``outputs`` (B,..) for the ``tiles`` of these numbers."""
        rows, columns = self.plan.rows, self.plan.columns
        maps = {name: getattr(outputs, name) for name in _MAPS}
        device = outputs.semantic.device
        for name, values in maps.items():
            if values is not None and name not in self._totals:
                shape = (values.shape[1], *self.plan.grid)
                self._totals[name] = torch.zeros(shape, device=device)
        if self._covered is None:
            self._covered = torch.zeros(self.plan.grid, device=device)
        for i, number in enumerate(tiles):
            row, column = divmod(number, len(columns.starts))
            where, weight = _cells(rows, columns, number)
            weight = weight.to(device)
            self._covered[where] += weight
            for name, total in self._totals.items():
                there = _at(maps[name][i].float(), rows.places[row], columns.places[column])
                total[(slice(None), *where)] += there * weight
        if outputs.pooled is not None:
            self._pooled.extend(outputs.pooled)

    def outputs(self, whole: Outputs | None = None) -> Outputs:
        """The blended outputs, (1,..) at the size of the grid; offsets in its cells.

        Args:
            whole: outputs (1,..) for the whole image at any size, which count where tiles are
                missing; near the border of those that are there both are blended. Classes are the
                mean of both where there are tiles.
        """
        totals = dict(self._totals)
        if whole is not None:
            for name, share in _BESIDE_WHOLE.items():
                values = getattr(whole, name)
                if values is None:
                    continue
                seen = _resized(values[0].float(), self.plan.grid)
                if name == "offset":  # in pixels of the image, as those of tiles are
                    seen = seen * _ratio(self.plan.image, values.shape[2:], seen.device)
                if self._covered is not None:
                    tiles = totals[name] / self._covered.clamp_min(torch.finfo(seen.dtype).tiny)
                    seen = seen.lerp(tiles, share * _trust(self._covered))
                totals[name] = seen
            self._pooled = [] if whole.pooled is None else [whole.pooled[0]]
        center, offset, distance = (
            totals[name][None] if name in totals else None for name in _MAPS[1:]
        )
        if offset is not None:
            offset = offset * _ratio(self.plan.grid, self.plan.image, offset.device)
        pooled = torch.stack(self._pooled).mean(0, keepdim=True) if self._pooled else None
        semantic = totals["semantic"][None]
        return Outputs(semantic, center, offset, None, {}, pooled, distance=distance)


def _side(length: int, tile: int, overlap: float, cells: int) -> _Side:
    tile = min(tile, length)
    count = 1 + math.ceil((length - tile) / max(1.0, tile * (1 - overlap)))
    starts = [round(i * (length - tile) / max(1, count - 1)) for i in range(count)]
    middles = (torch.arange(cells, dtype=torch.float64) + 0.5) * (length / cells) - 0.5
    covered, places, weights = [], [], []
    total = torch.zeros(cells, dtype=torch.float64)
    for start in starts:
        inside = ((middles >= start - 0.5) & (middles < start + tile - 0.5)).nonzero().flatten()
        covered.append(slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0))
        there = middles[covered[-1]] - start
        places.append(there.clamp(0, tile - 1))
        weights.append(torch.sin(math.pi * (there + 0.5) / tile).square().clamp_min(_LEAST))
        total[covered[-1]] += weights[-1]
    weights = [(w / total[where]).float() for w, where in zip(weights, covered, strict=True)]
    return _Side(starts, tile, covered, places, weights)


def _cells(rows: _Side, columns: _Side, number: int) -> tuple[tuple[slice, slice], Tensor]:
    """The cells of the grid that a tile covers, by its number, and its weights for them."""
    row, column = divmod(number, len(columns.starts))
    weight = rows.weights[row][:, None] * columns.weights[column]
    return (rows.cells[row], columns.cells[column]), weight


def _trust(covered: Tensor) -> Tensor:
    """How much tiles count beside the whole image, 0 to 1, where their weights add up to this."""
    return (covered / _FULL).clamp_max(1)


def _at(maps: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Maps (C,h,w) at places between their pixels, by linear interpolation."""
    for dim, places in ((1, rows), (2, columns)):
        source = maps.shape[dim]
        if torch.equal(places, torch.arange(source, dtype=places.dtype)):  # cells are pixels
            continue
        before = places.long()
        after = (before + 1).clamp_max(source - 1).to(maps.device)
        shape = [1, 1, 1]
        shape[dim] = len(places)
        share = (places - before).float().view(shape).to(maps.device)
        before = before.to(maps.device)
        maps = maps.index_select(dim, before).lerp(maps.index_select(dim, after), share)
    return maps


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[1:] == size:
        return maps
    return F.interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def _ratio(to: tuple[int, int], of: Sequence[int], device: torch.device) -> Tensor:
    """By how much offsets (2,h,w) grow from one size to another, (2,1,1)."""
    ratios = [target / source for target, source in zip(to, of, strict=True)]
    return torch.tensor(ratios, device=device).view(2, 1, 1)
