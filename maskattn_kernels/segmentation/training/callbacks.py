# SPDX-License-Identifier: BSD-3-Clause
"""What happens beside training: progress on stderr, saved state, and a stop by a signal."""

import math
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytorch_lightning as pl

from maskattn_kernels.common.progress import Progress
from maskattn_kernels.common.signals import SIGNALS, Terminated, handle
from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.training.module import SegmentationModule, main_score
from maskattn_kernels.segmentation.training.processes import say

__all__ = ["SaveState", "ShowProgress", "StopRequest", "Stopped"]


class Stopped(Exception):
    """Training was stopped by a signal after its state was saved."""


class StopRequest:
    """Ctrl-C or SIGTERM as a request that is honoured between two steps.

    A second signal ends the process at once.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def made(self) -> bool:
        """Whether there was a signal."""
        return self.signal is not None

    @contextmanager
    def listen(self) -> Iterator[None]:
        """Take over both signals for the time of the context."""
        with handle(self._take):
            self._handlers = {number: signal.getsignal(number) for number in SIGNALS}
            yield

    def listen_again(self) -> None:
        """After Lightning has put a handler of its own in place, which ends the run unsaved."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._handlers.items():
                signal.signal(number, handler)

    def interrupt(self, message: str) -> KeyboardInterrupt:
        """What the stopped run raises: its class tells the exit code, ``message`` how to resume."""
        kind = KeyboardInterrupt if self.signal == signal.SIGINT else Terminated
        return kind(message)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        line = "stopping after this step; a second signal stops at once"
        say(f"\n{line}" if sys.stderr.isatty() else line)


class SaveState(pl.Callback):
    """Keeps ``last.ckpt``, to resume from, and ``best/``, the checkpoint with the best score.

    State is saved at ends of optimizer steps, and never between such an end and a validation that
    is due: it waits for the validation's end, or a resumed run would skip that validation.

    Args:
        out: folder of the run.
        every: steps between two saved states; 0 = only at validations.
        stop: when it is made, save and raise `Stopped`.
        log_every: steps between two exchanges of requests among processes.
        patience: validations in a row without a better score after which the run ends; 0 = never.
    """

    def __init__(
        self, out: Path, every: int, stop: StopRequest, log_every: int = 1, patience: int = 0
    ) -> None:
        self.path, self.best_folder = out / "last.ckpt", out / "best"
        self.every, self.stop, self.log_every = every, stop, log_every
        self.patience = patience
        self.best: tuple[bool, float] | None = None
        self.since_best = 0
        self.stopping = False
        self.row: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "since_best": self.since_best, "row": self.row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"]
        self.since_best = state_dict.get("since_best", 0)  # states of before have no such count

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._end_early(trainer)  # a run that was killed between its end and its last checkpoint

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *batch: Any
    ) -> None:
        done = batch[-1] + 1
        if done % trainer.accumulate_grad_batches or done % int(trainer.val_check_batch or 1) == 0:
            return
        self.stopping = self._stop_requested(trainer)
        if self.stopping or (self.every and trainer.global_step % self.every == 0):
            # Lightning logs this step only later, and a kill in between must not lose its row.
            due = trainer.global_step % self.log_every == 0
            self.row = {k: float(v) for k, v in trainer.logged_metrics.items()} if due else {}
            trainer.save_checkpoint(self.path)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop.listen_again()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop.listen_again()

    def on_train_batch_start(self, trainer: pl.Trainer, *batch: Any) -> None:
        if self.stopping:  # only now: the row of the step before is in the log
            raise Stopped(trainer.global_step)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not isinstance(pl_module, SegmentationModule):
            return
        rank = _rank(pl_module.scores, pl_module.network.task)
        if self.best is None or rank > self.best:
            self.best, self.since_best = rank, 0
            save_network(trainer, pl_module, self.best_folder)
        else:
            self.since_best += 1
        self.row = {}
        trainer.save_checkpoint(self.path)
        self._end_early(trainer)
        if self._stop_requested(trainer) and trainer.global_step < trainer.max_steps:
            raise Stopped(trainer.global_step)

    def _end_early(self, trainer: pl.Trainer) -> None:
        """Let the run end here, if no validation was better for too long."""
        if 0 < self.patience <= self.since_best and trainer.global_step < trainer.max_steps:
            trainer.should_stop = True
            say(f"no better score in {self.since_best} validations: the run ends (--patience)")

    def _stop_requested(self, trainer: pl.Trainer) -> bool:
        # All processes must stop at the same step. Asking costs a message, so not at every one.
        if trainer.world_size == 1:
            return self.stop.made
        if trainer.validating or trainer.global_step % self.log_every == 0:
            return trainer.strategy.reduce_boolean_decision(self.stop.made, all=False)
        return False


def _rank(scores: dict[str, float], task: str) -> tuple[bool, float]:
    """For comparison: by the task's main score, or below all of those by mIoU if it is NaN."""
    main, fallback = scores[main_score(task)], scores["mIoU"]
    if not math.isnan(main):
        return True, main
    return False, -1.0 if math.isnan(fallback) else fallback


def save_network(trainer: pl.Trainer, module: SegmentationModule, folder: Path) -> None:
    """Write the network for use without Lightning; to be called in every process."""
    # Where the weights are shared out among processes, this gathers them.
    state = trainer.strategy.lightning_module_state_dict()
    if trainer.is_global_zero:
        prefix = "network." if module.average is None else "average."
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        checkpoint: Checkpoint = module.checkpoint()
        checkpoint.save_pretrained(folder, state=own)


class ShowProgress(pl.Callback):
    """On stderr: step, loss, rate and time left; and a line for each validation.

    Args:
        steps: of the whole run.
        batch_size: images of a batch of one process.
        log_every: steps between two looks at the loss.
    """

    def __init__(self, steps: int, batch_size: int, log_every: int) -> None:
        self.steps, self.batch_size, self.log_every = steps, batch_size, log_every
        self.since, self.since_step = time.monotonic(), 0
        self.progress = Progress()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.since, self.since_step = time.monotonic(), trainer.global_step
        self.started_at = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *batch: Any
    ) -> None:
        step = trainer.global_step
        # Reading the loss waits for the device, so only where the log reads it as well.
        is_first = step == self.started_at + 1
        due = (is_first or step % self.log_every == 0) and step > self.since_step
        if not due or not trainer.is_global_zero:
            return
        now = time.monotonic()
        rate = (step - self.since_step) / max(now - self.since, 1e-9)
        images = self.batch_size * trainer.accumulate_grad_batches * trainer.world_size
        left = int((self.steps - step) / rate)
        show = self.progress.note if is_first else self.progress.show  # a sign of life, soon
        show(
            f"step {step}/{self.steps}  loss {float(outputs['loss']):.3f}  "
            f"{rate * images:.1f} images/s  {left // 60}:{left % 60:02d} left"
        )
        self.since, self.since_step = now, step

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.paused = time.monotonic()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if trainer.is_global_zero:
            done, total = batch_idx + 1, int(trainer.num_val_batches[0])
            step = f"step {trainer.global_step}/{self.steps}"
            self.progress.show(f"{step}  validation  {done}/{total} batches")

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.since += time.monotonic() - self.paused
        if trainer.is_global_zero and isinstance(pl_module, SegmentationModule):
            scores = "  ".join(f"{name} {score:.1f}" for name, score in pl_module.scores.items())
            self.progress.note(f"step {trainer.global_step}/{self.steps}  validation  {scores}")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.progress.close()

    def on_exception(self, trainer: pl.Trainer, *error: Any) -> None:
        self.progress.close()
