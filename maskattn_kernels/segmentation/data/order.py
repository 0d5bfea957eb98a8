# SPDX-License-Identifier: BSD-3-Clause
"""Which sample comes when: from the seed and the number of the batch alone, over all processes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Sampler

__all__ = ["PADDING", "Draw", "RunOrder", "ValidationOrder"]

PADDING = -1
"""The index of a draw that only fills up a batch; its labels are all void."""


@dataclass(frozen=True)
class Draw:
    """One draw from a data set: all that the random choices for it may depend on.

    Attributes:
        epoch: from 0.
        index: of the sample, or `PADDING`.
        again: how often the sample came before in this epoch.
    """

    epoch: int
    index: int
    again: int = 0


class RunOrder(Sampler[list[Draw]]):
    """The training batches of a whole run; each depends on the seed and on its number only.

    The images are one endless stream: epoch after epoch, each in a random order of its own, cut
    into batches without regard to where epochs meet. So no image is left out, a set may be smaller
    than a batch, and every optimizer step sees as many images.

    Args:
        images: in the data set.
        batch_size: of one process.
        batches: in the whole run.
        seed: of the orders.
        start: batches to leave out, because a stopped run has done them.
        rank, world: which process this is, of how many. Of each batch of all processes together,
            it takes every ``world``-th image.
        weights: how often each image is drawn, relative to the others; None = all alike. An epoch
            has as many draws as images, and an image comes in each as often as its weight says,
            rounded up or down.

    Example:
        >>> from maskattn_kernels.segmentation.data.order import RunOrder
        >>> whole = list(RunOrder(images=3, batch_size=2, batches=3, seed=1))
        >>> [draw.epoch for batch in whole for draw in batch]
        [0, 0, 0, 1, 1, 1]
        >>> list(RunOrder(images=3, batch_size=2, batches=3, seed=1, start=2)) == whole[2:]
        True
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        batches: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world: int = 1,
        weights: np.ndarray | None = None,
    ) -> None:
        self.weights = weights
        self.images, self.batch_size, self.batches = images, batch_size, batches
        self.seed, self.start, self.rank, self.world = seed, start, rank, world

    def __len__(self) -> int:
        """Batches of the whole run, those before ``start`` too: Lightning counts them as well."""
        return self.batches

    def __iter__(self) -> Iterator[list[Draw]]:
        together = self.batch_size * self.world
        known, order = -1, []
        for batch in range(self.start, self.batches):
            draws = []
            for place in range(batch * together + self.rank, (batch + 1) * together, self.world):
                epoch, position = divmod(place, self.images)
                if epoch != known:
                    known, order = epoch, self._order(epoch)
                draws.append(order[position])
            yield draws

    def _order(self, epoch: int) -> list[Draw]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        order = torch.randperm(self.images, generator=generator).tolist()
        if self.weights is None:
            return [Draw(epoch, index) for index in order]
        # Evenly spaced draws from the images laid side by side, each as wide as its weight.
        ends = self.weights[order].cumsum()
        offset = torch.rand((), generator=generator, dtype=torch.float64).item()
        places = (np.arange(self.images) + offset) * (ends[-1] / self.images)
        within = np.minimum(places, np.nextafter(ends[-1], 0))
        chosen = np.searchsorted(ends, within, side="right")
        again = np.arange(self.images) - np.searchsorted(chosen, chosen)
        return [
            Draw(epoch, order[chosen[turn]], int(again[turn]))
            for turn in torch.randperm(self.images, generator=generator).tolist()
        ]


class ValidationOrder(Sampler[Draw]):
    """Every image once, in the order of the set; padding gives each process as many draws.

    Args:
        images: in the data set.
        rank, world: which process this is, of how many.

    Example:
        >>> from maskattn_kernels.segmentation.data.order import ValidationOrder
        >>> [[draw.index for draw in ValidationOrder(5, rank, world=2)] for rank in (0, 1)]
        [[0, 2, 4], [1, 3, -1]]
    """

    def __init__(self, images: int, rank: int = 0, world: int = 1) -> None:
        self.images, self.rank, self.world = images, rank, world

    def __len__(self) -> int:
        return -(-self.images // self.world)

    def __iter__(self) -> Iterator[Draw]:
        for first in range(0, self.images, self.world):
            index = first + self.rank
            yield Draw(epoch=0, index=index if index < self.images else PADDING)
