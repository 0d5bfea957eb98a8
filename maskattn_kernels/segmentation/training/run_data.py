# SPDX-License-Identifier: BSD-3-Clause
"""The data of a run for Lightning, from any batch of the run on."""

import pytorch_lightning as pl
from torch.utils.data import DataLoader

from maskattn_kernels.segmentation.data.batches import Batches

__all__ = ["RunData"]


class RunData(pl.LightningDataModule):
    """`Batches`, shared out over the processes of a trainer.

    To Lightning a whole run is one epoch: what it does where epochs meet (gradients that are not
    accumulated to the end, states that cannot be resumed from exactly) never happens.

    Args:
        batches: the data.
        total: batches in the whole run.
        start: batches that are done already.
    """

    def __init__(self, batches: Batches, total: int, start: int = 0) -> None:
        super().__init__()
        self.batches, self.total, self.start = batches, total, start

    def train_dataloader(self) -> DataLoader:
        return self.batches.train_loader(self.total, self.start, **self._share())

    def val_dataloader(self) -> DataLoader:
        return self.batches.val_loader(**self._share())

    def _share(self) -> dict[str, int]:
        if self.trainer is None:  # used without Lightning: one process
            return {}
        return {"rank": self.trainer.global_rank, "world": self.trainer.world_size}
