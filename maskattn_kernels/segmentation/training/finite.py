# SPDX-License-Identifier: BSD-3-Clause
"""A run whose loss or weights are no longer finite stops before anything of it is saved."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from maskattn_kernels.common.errors import CommandError

__all__ = ["Diverged", "StopIfNotFinite"]

_NEVER = 2**62


class Diverged(CommandError):
    """The loss or a weight is NaN or infinite."""


class StopIfNotFinite(pl.Callback):
    """Raises `Diverged` at the next row of the log, validation, save or end of training.

    The first step with such a loss is noted on the device, so no step waits for it.

    Args:
        log_every: steps between two looks at the loss.
        rates: the learning rates by option, for the advice.
    """

    def __init__(self, log_every: int, rates: dict[str, float]) -> None:
        self.log_every, self.rates = log_every, rates
        self.first: Tensor | None = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *batch: Any
    ) -> None:
        step = batch[-1] // trainer.accumulate_grad_batches + 1
        loss = outputs["loss"].detach()
        if self.first is None:
            self.first = torch.full_like(loss, _NEVER, dtype=torch.int64)
        self.first = torch.where(loss.isfinite(), self.first, self.first.clamp_max(step))
        if trainer.global_step % self.log_every == 0:
            self._check_loss(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._check(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._check(trainer, pl_module)

    def _check(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._check_loss(trainer)
        tensors = (*module.parameters(), *module.buffers())
        if _anywhere(trainer, not all(bool(t.isfinite().all()) for t in tensors)):
            raise Diverged(f"step {trainer.global_step}: a weight is not finite; {self._advice()}")

    def _check_loss(self, trainer: pl.Trainer) -> None:
        first = _NEVER if self.first is None else int(self.first)
        if _anywhere(trainer, first < _NEVER):
            step = min(first, trainer.global_step)
            raise Diverged(f"step {step}: the loss is not finite; {self._advice()}")

    def _advice(self) -> str:
        rates = " and ".join(f"{name} (now {rate:g})" for name, rate in self.rates.items())
        return (
            f"train again with a lower {rates}, or check the labels with `maskattn check-data`; "
            "what was saved before is kept"
        )


def _anywhere(trainer: pl.Trainer, here: bool) -> bool:
    """Whether it is so in one of the processes: all of them must stop together."""
    if trainer.world_size == 1:
        return here
    return trainer.strategy.reduce_boolean_decision(here, all=False)
