# SPDX-License-Identifier: BSD-3-Clause
"""`SegmentationModule`: network, loss, optimizer and scores as a LightningModule."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from maskattn_kernels.nn import MaskHead
from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.frame import FrameKind
from maskattn_kernels.segmentation.data.sample import Classes
from maskattn_kernels.segmentation.model.grouping import group
from maskattn_kernels.segmentation.model.losses import SegmentationLoss
from maskattn_kernels.segmentation.model.network import SegmentationNetwork
from maskattn_kernels.segmentation.scoring.metrics import SegmentationMetrics
from maskattn_kernels.segmentation.training.averaging import average_of, update_average
from maskattn_kernels.segmentation.training.muon import Muon, hidden_convolutions

__all__ = ["OptimizerOptions", "SegmentationModule", "main_score"]


@dataclass
class OptimizerOptions:
    """Muon or AdamW, with a warm-up and then half a cosine down to zero.

    Attributes:
        name: "muon" = orthogonal steps for the 3x3 convolutions and AdamW for the rest, see `Muon`;
            "adamw" = AdamW for all.
        lr: AdamW's highest learning rate.
        muon_lr: Muon's; a quarter of it is the default where a network is fine-tuned.
        mask_rate: how many times ``lr`` the learning rate of the mask heads is. The features that
            they read change with Muon's steps; at 1 their scores hardly leave the initial values.
        weight_decay: of matrices and convolutions; norms, biases and mask heads have none.
        warmup: fraction of the run in which the rates rise from zero.
        encoder_rate: how many times ``lr`` the learning rate of a pretrained encoder is; it is
            trained by AdamW.
        ema: decay of the moving average of the weights (`update_average`), which is validated and
            saved as `best` and `final`; 0 = the weights themselves are.
    """

    name: Literal["muon", "adamw"] = "muon"
    lr: float = 1e-3
    muon_lr: float = 0.02
    mask_rate: float = 10.0
    weight_decay: float = 0.01
    warmup: float = 0.05
    encoder_rate: float = 0.1
    ema: float = 0.999


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
        options = self.optimizer_options
        trained = self.network.encoder_parts() if self.pretrained_encoder else []
        encoder = [p for part in trained for p in part.parameters()]
        modules = [m for m in self.network.modules() if isinstance(m, MaskHead)]
        heads = [p for module in modules for p in module.parameters()]
        apart = {id(weight) for weight in (*encoder, *heads)}
        orthogonal = hidden_convolutions(self.network) if options.name == "muon" else []
        orthogonal = [weight for weight in orthogonal if id(weight) not in apart]
        apart |= {id(weight) for weight in orthogonal}
        rest = [p for p in self.network.parameters() if id(p) not in apart]
        encoder_lr = options.encoder_rate * options.lr
        groups: list[dict[str, Any]] = [
            {"params": orthogonal, "orthogonal": True, "lr": options.muon_lr},
            {"params": heads, "lr": options.mask_rate * options.lr, "weight_decay": 0.0},
            {"params": [p for p in encoder if p.ndim > 1], "lr": encoder_lr},
            {"params": [p for p in encoder if p.ndim <= 1], "lr": encoder_lr, "weight_decay": 0.0},
            {"params": [p for p in rest if p.ndim > 1]},
            {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
        ]
        for each in groups:
            each["params"] = [p for p in each["params"] if p.requires_grad]
        optimizer = Muon(
            [each for each in groups if each["params"]],
            lr=options.lr,
            weight_decay=options.weight_decay,
        )
        warmup = max(1, round(options.warmup * self.steps))

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, self.steps - warmup)))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
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
