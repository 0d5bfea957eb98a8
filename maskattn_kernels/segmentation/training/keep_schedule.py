# SPDX-License-Identifier: BSD-3-Clause
"""How the keep ratio changes while a network is trained.

A selector that learns finds out what a token is worth only if the token takes part. A run that
begins with all tokens first learns what attention is good for, and then with how few tokens it can
do. A run that draws the ratio anew at each step makes one network that is good at all of them.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pytorch_lightning as pl

from maskattn_kernels.models.selector_dial import SelectorDial

__all__ = ["KeepOptions", "KeepSchedule"]


@dataclass
class KeepOptions:
    """The keep ratio of the steps; validations, checkpoints and the last steps have network.keep.

    Attributes:
        schedule: "constant" = network.keep; "falling" = from all tokens down to network.keep;
            "drawn" = another ratio at each step, from ``lowest`` to 1 and evenly in its logarithm.
        falls: fractions of the run between which a falling ratio falls.
        lowest: ratio that is drawn.
    """

    schedule: Literal["constant", "falling", "drawn"] = "constant"
    falls: tuple[float, float] = (0.0, 0.5)
    lowest: float = 0.05


class KeepSchedule(pl.Callback):
    """Sets the keep ratio of a network before each step, and ``network.keep`` after it.

    The ratio depends on the seed and the number of the step alone: all processes, and a run that
    was resumed, have the same.

    Args:
        dial: the network, or the part of it that selects.
        options: see `KeepOptions`.
        steps: of the whole run.
        seed: of what is drawn.
    """

    def __init__(self, dial: SelectorDial, options: KeepOptions, steps: int, seed: int) -> None:
        self.dial, self.options, self.steps, self.seed = dial, options, steps, seed
        self.target = dial.keep

    def ratio(self, step: int, keep: float) -> float:
        """The ratio of a step, counted from 0, where it becomes ``keep`` in the end."""
        if self.options.schedule == "drawn":
            return self.options.lowest ** random.Random((step << 32) + self.seed).random()
        start, end = (self.steps * part for part in self.options.falls)
        fallen = (step - start) / (end - start) if start < end else float(step >= end)
        return keep ** min(max(fallen, 0.0), 1.0)

    def on_train_batch_start(self, trainer: pl.Trainer, *batch: Any) -> None:
        step, target = trainer.global_step, self.target
        if isinstance(target, Mapping):
            self.dial.set_keep({scale: self.ratio(step, keep) for scale, keep in target.items()})
        else:
            self.dial.set_keep(self.ratio(step, target))

    def on_train_batch_end(self, *batch: Any) -> None:
        self.dial.set_keep(self.target)
