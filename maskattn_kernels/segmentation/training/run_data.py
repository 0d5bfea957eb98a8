# SPDX-License-Identifier: BSD-3-Clause
"""The training images of a whole run as one stream, so that a run may go on from any batch."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Sampler

from maskattn_kernels.segmentation.data.batches import Batches
from maskattn_kernels.segmentation.data.order import Draw

__all__ = ["RunData", "RunOrder"]


class RunOrder(Sampler[list[Draw]]):
    """The batches of a whole run; each depends on the seed and on its number only.

    The images are one endless stream: epoch after epoch, each in a random order of its own, cut
    into batches without regard to where epochs meet. So no image is left out, a set may be smaller
    than a batch, and every optimizer step sees as many images.

    Args:
        images: in the data set.
        batch_size: of one process.
        batches: in the whole run.
        seed: of the orders.
        rank, world: which process this is, of how many. Of each batch of all processes together,
            it takes every ``world``-th image.

    Example:
        >>> from maskattn_kernels.segmentation.training.run_data import RunOrder
        >>> order = RunOrder(images=3, batch_size=2, batches=3, seed=1)
        >>> whole = list(order)
        >>> [draw.epoch for batch in whole for draw in batch]
        [0, 0, 0, 1, 1, 1]
        >>> order.start = 2  # as if two batches were done already
        >>> list(order) == whole[2:]
        True
    """

    def __init__(
        self, images: int, batch_size: int, batches: int, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        self.images, self.batch_size, self.batches = images, batch_size, batches
        self.seed, self.rank, self.world = seed, rank, world
        self.start = 0

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
                draws.append(Draw(epoch, order[position], turn=0))
            yield draws

    def _order(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        return torch.randperm(self.images, generator=generator).tolist()


class RunData(pl.LightningDataModule):
    """`Batches` in the order of a run.

    To Lightning a whole run is one epoch: what it does where epochs meet (gradients that are not
    accumulated to the end, states that cannot be gone on from exactly) never happens.

    Args:
        batches: the data.
        total: batches in the whole run.
        start: batches that are done already.
    """

    def __init__(self, batches: Batches, total: int, start: int = 0) -> None:
        super().__init__()
        self.batches, self.total, self.start = batches, total, start

    def train_dataloader(self) -> DataLoader:
        plain = self.batches.train_dataloader()
        rank, world = (
            (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        )
        images, seed = len(plain.dataset), self.batches.seed  # type: ignore[arg-type]
        order = RunOrder(images, self.batches.batch_size, self.total, seed, rank, world)
        order.start = self.start
        return DataLoader(
            plain.dataset,
            batch_sampler=order,
            num_workers=plain.num_workers,
            collate_fn=plain.collate_fn,
            pin_memory=plain.pin_memory,
            worker_init_fn=_leave_ctrl_c_alone,
        )

    def val_dataloader(self) -> DataLoader:
        loader = self.batches.val_dataloader()
        loader.worker_init_fn = _leave_ctrl_c_alone
        return loader


def _leave_ctrl_c_alone(worker: int) -> None:
    """A terminal sends Ctrl-C to the loading processes as well; the training process ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
