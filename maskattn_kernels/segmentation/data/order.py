# SPDX-License-Identifier: BSD-3-Clause
"""Which sample comes when: from (seed, epoch) alone, shared out over processes, resumable."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist
from torch.utils.data import DataLoader, Dataset, DistributedSampler

__all__ = ["PADDING", "Draw", "Order", "ResumableLoader"]

PADDING = -1
"""The index of a draw that only fills up a batch; its labels are all void."""


@dataclass(frozen=True)
class Draw:
    """One draw from a data set: all that the random choices for it may depend on.

    Attributes:
        epoch: from 0.
        index: of the sample, or `PADDING`.
        turn: how often the sample was drawn before in this epoch.
    """

    epoch: int
    index: int
    turn: int


class Order(DistributedSampler):
    """Yields the `Draw`s of one process for one epoch.

    In training the order is a permutation, and an epoch is a whole number of global batches: what
    is left over waits for the next epoch; a set smaller than one batch is gone through again. Of
    each global batch, process r of W takes every W-th sample from r on, so that W processes see
    what one process with a W times larger batch sees. Otherwise the order is that of the set, and
    padding gives each process as many draws.

    It is a `DistributedSampler` so that Lightning leaves it in place.

    Args:
        size: samples in the set.
        batch_size: per process.
        shuffle: for training.
        seed: of the permutations.

    Example:
        >>> [draw.index for draw in Order(3, batch_size=4, shuffle=False)]
        [0, 1, 2]
        >>> len(Order(10, batch_size=4, shuffle=True))
        8
    """

    def __init__(self, size: int, batch_size: int, shuffle: bool, seed: int = 0) -> None:
        shared = dist.is_available() and dist.is_initialized()
        super().__init__(
            range(size),  # type: ignore[arg-type]
            num_replicas=dist.get_world_size() if shared else 1,
            rank=dist.get_rank() if shared else 0,
            shuffle=shuffle,
            seed=seed,
        )
        self.size = size
        self.batch_size = batch_size
        self.start = 0
        """How many draws to leave out the next time, after a resume."""

    def __len__(self) -> int:
        if self.shuffle:
            return max(1, self.size // (self.batch_size * self.num_replicas)) * self.batch_size
        return -(-self.size // self.num_replicas)

    def __iter__(self) -> Iterator[Draw]:
        order = np.arange(self.size)
        if self.shuffle:
            rng = np.random.Generator(np.random.PCG64((self.seed, self.epoch)))
            order = rng.permutation(self.size)
        start, self.start = self.start, 0
        for step in range(start, len(self)):
            turn, place = divmod(step * self.num_replicas + self.rank, self.size)
            padding = turn > 0 and not self.shuffle
            yield Draw(self.epoch, PADDING if padding else int(order[place]), turn)


class ResumableLoader(DataLoader):
    """A `DataLoader` over an `Order` whose place in the epoch Lightning saves and restores."""

    def __init__(self, dataset: Dataset, order: Order, **options: Any) -> None:
        super().__init__(dataset, sampler=order, batch_size=order.batch_size, **options)
        self._order = order
        self._done = 0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._done = self._order.start // self._order.batch_size
        for batch in super().__iter__():
            self._done += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch and the batches of it that were handed out."""
        return {"epoch": self._order.epoch, "batches": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the batches that were handed out."""
        epochs, batches = divmod(state["batches"], len(self))
        self._order.set_epoch(state["epoch"] + epochs)
        self._order.start = batches * self._order.batch_size
