# SPDX-License-Identifier: BSD-3-Clause
"""`SegmentationModule`: network, loss, optimizer and scores as a LightningModule."""

from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.frame import FrameKind
from maskattn_kernels.segmentation.data.sample import Classes
from maskattn_kernels.segmentation.model.grouping import group
from maskattn_kernels.segmentation.model.losses import SegmentationLoss
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.scoring.metrics import SegmentationMetrics
from maskattn_kernels.segmentation.training.averaging import average_of, update_average
from maskattn_kernels.segmentation.training.optimizer import OptimizerOptions, make_optimizer

__all__ = ["SegmentationModule", "main_score"]


def main_score(task: str) -> str:
    """The score by which the best checkpoint of a task is chosen."""
    return {"semantic": "mIoU", "instance": "AP", "panoptic": "PQ"}[task]


class SegmentationModule(pl.LightningModule):
    """What Lightning needs to train a `SegmentationNetwork`.

    Args:
        network: to train.
        loss: of its outputs.
        classes: of the data.
        steps: of the whole run, for the learning rate.
        seed: of what is drawn in training; a step of a resumed run draws the same.
        optimizer: see `OptimizerOptions`.
        freeze_encoder: train only the decoder and the heads.
        freeze_encoder_norms: keep the statistics of the encoder's BatchNorms as they are.
        pretrained_encoder: the encoder starts from trained weights, see ``encoder_rate``.
        size: height and width of the training images, for the checkpoint.
        frame: of whole images, for the checkpoint.
        run: options of the run by name, kept in its saved state.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        loss: SegmentationLoss,
        classes: Classes,
        *,
        steps: int,
        seed: int = 0,
        optimizer: OptimizerOptions | None = None,
        freeze_encoder: bool = False,
        freeze_encoder_norms: bool = False,
        pretrained_encoder: bool = False,
        size: tuple[int, int] = (128, 128),
        frame: FrameKind = "fit",
        run: dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.network, self.loss, self.classes = network, loss, classes
        self.steps, self.seed = steps, seed
        self.size, self.frame = size, frame
        self.run = run or {}
        self.optimizer_options = optimizer or OptimizerOptions()
        self.average = average_of(network) if self.optimizer_options.ema else None
        self.metrics = SegmentationMetrics(classes, network.task)
        self.scores: dict[str, float] = {}
        self.scored_at = 0
        self.restoring = False
        self.pretrained_encoder = pretrained_encoder
        self.freezes_norms = freeze_encoder_norms
        self.frozen = network.encoder_parts() if freeze_encoder else []
        for part in self.frozen:
            part.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "SegmentationModule":
        super().train(mode)
        for part in self.frozen:  # their batch statistics stay as well
            part.eval()
        if self.freezes_norms:
            for part in self.network.encoder_parts():
                for module in part.modules():
                    if isinstance(module, nn.modules.batchnorm._BatchNorm):
                        module.eval()
        return self

    @property
    def validated(self) -> SegmentationNetwork:
        """The network that is scored and saved: the average, if there is one."""
        return self.network if self.average is None else self.average

    def on_train_batch_start(self, batch: dict[str, Any], batch_idx: int) -> None:
        # Draws depend on the number of the batch in the run alone: a resumed run repeats them.
        torch.manual_seed((self.seed * 1_000_003 + batch_idx) * 1009 + self.global_rank)
        self.network.anneal(self.global_step / self.steps)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        outputs = self.network(batch["image"])
        losses = self.loss(outputs, batch)
        # Lightning keeps these as tensors and reads them only when it writes a row of the log.
        self.log_dict({f"loss/{name}": value.detach() for name, value in losses.items()})
        for scale, selection in outputs.selections.items():
            self.log(f"keep/{scale}", selection.keep_ratio.mean())
        return losses["loss"]

    def optimizer_step(self, *args: Any, **options: Any) -> None:
        super().optimizer_step(*args, **options)
        if self.average is not None:
            decay = self.optimizer_options.ema
            update_average(self.average, self.network, decay, self.global_step + 1)

    def on_validation_epoch_start(self) -> None:
        self.metrics.reset()

    def validation_step(self, batches: list[dict[str, Any]], batch_idx: int) -> None:
        for batch in batches:  # of one shape each
            outputs = self.validated(batch["image"])
            self.metrics.update(group(outputs, self.classes.things), batch)

    def on_validation_epoch_end(self) -> None:
        self.scores, self.scored_at = self.metrics.compute(), self.trainer.global_step
        row = {f"val/{name}": value for name, value in self.scores.items()}
        # Lightning takes the number of the row from "step", and counts from 0.
        self.log_dict(row | {"step": float(self.scored_at - 1)})

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer, schedule = make_optimizer(
            nn.ModuleList([self.network, self.loss]),  # a loss may have layers of its own
            self.optimizer_options,
            self.steps,
            self.network.encoder_parts() if self.pretrained_encoder else [],
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["run"] = self.run
        checkpoint["scores"] = {"at": self.scored_at, "values": self.scores}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.restoring = True
        self.scores, self.scored_at = checkpoint["scores"]["values"], checkpoint["scores"]["at"]

    def on_train_start(self) -> None:
        for optimizer in self.trainer.optimizers:
            for parameter, state in optimizer.state.items():
                for name, value in state.items():
                    if value.ndim and value.shape != parameter.shape:
                        raise ValueError(f"{name} of the optimizer has another shape")
        self.restoring = False

    def checkpoint(self) -> Checkpoint:
        """The network that is scored, with its weights of now, for use without Lightning."""
        return Checkpoint(self.validated, self.classes, self.size, self.frame, dict(self.scores))
