# SPDX-License-Identifier: BSD-3-Clause
"""``last.ckpt``: the state of a training run, from which it is resumed exactly."""

from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.plugins import CheckpointIO

from maskattn_kernels.common.atomic import replace_file
from maskattn_kernels.segmentation.checkpoints import CheckpointError

__all__ = ["SafeStateIO", "read_state", "saved_batches"]


def read_state(path: Path) -> dict[str, Any]:
    """Read the state at ``path``: tensors, numbers and text; code in it is refused, not run.

    Raises:
        CheckpointError: one line on what is wrong with the file.
    """
    if not path.is_file():
        raise CheckpointError(f"ckpt_path: there is no {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling raises of many kinds
        unsafe = "weights_only" in str(error).lower()
        reason = "it holds code or objects that are not loaded" if unsafe else "damaged or cut off"
        raise CheckpointError(f"{path}: not the state of a training run: {reason}") from None
    if not isinstance(state, dict) or "loops" not in state:
        raise CheckpointError(f"{path}: not the state of a training run")
    return state


def saved_batches(state: dict[str, Any]) -> int:
    """How many batches a run had taken when its state was saved."""
    return int(state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"])


class SafeStateIO(CheckpointIO):
    """How Lightning writes and reads state here: whole or not at all, and without code."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        replace_file(Path(path), lambda temporary: torch.save(checkpoint, temporary))

    def load_checkpoint(self, path: Any, *args: Any, **options: Any) -> dict[str, Any]:
        return read_state(Path(path))

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)
