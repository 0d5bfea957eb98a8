# SPDX-License-Identifier: BSD-3-Clause
"""``last.ckpt``: the state of a training run, from which it is resumed exactly."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import torch
from pytorch_lightning.plugins import CheckpointIO
from torch import Tensor, nn

from maskattn_kernels.common.atomic import replace_file
from maskattn_kernels.segmentation.checkpoints import CheckpointError

__all__ = [
    "SafeStateIO",
    "check_counters",
    "check_parts",
    "check_weights",
    "read_state",
    "saved_batches",
]

#: What a state holds that is read back: by name, its type.
PARTS = {
    "global_step": int,
    "state_dict": dict,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "run": dict,
    "scores": dict,
}


def read_state(path: Path) -> dict[str, Any]:
    """Read the state at ``path``: tensors, numbers and text; code in it is refused, not run.

    Raises:
        CheckpointError: one line on what is wrong with the file.
    """
    if not path.is_file():
        raise CheckpointError(f"ckpt_path: there is no {path}")
    reason = "" if _is_whole(path) else "damaged or cut off"
    if not reason:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # unpickling raises of many kinds
            unsafe = "weights_only" in str(error).lower()
            reason = "it holds code or objects that are not loaded" if unsafe else "damaged"
    if reason:
        raise CheckpointError(f"{path}: not the state of a training run: {reason}")
    if not isinstance(state, dict) or "loops" not in state:
        raise CheckpointError(f"{path}: not the state of a training run")
    return state


def _is_whole(path: Path) -> bool:
    """Whether the file is what its own checksums say."""
    try:
        with ZipFile(path) as file:
            return file.testzip() is None
    except Exception:  # zipfile raises of many kinds
        return False


def check_parts(state: dict[str, Any], path: Path) -> None:
    """Refuse the state of another program, or of another version of this one.

    Args:
        state: as it was read.
        path: its file, for the error.

    Raises:
        CheckpointError: what is read back from a state is missing.
    """
    missing = [name for name, kind in PARTS.items() if not isinstance(state.get(name), kind)]
    if not missing:
        saver = state["callbacks"].get("SaveState")
        texts = [text for pair in state["run"].items() for text in pair]
        checks = {
            "callbacks": isinstance(saver, dict) and {"best", "row"} <= saver.keys(),
            "optimizer_states": len(state["optimizer_states"]) == 1,
            "lr_schedulers": len(state["lr_schedulers"]) == 1,
            "run": all(isinstance(text, str) for text in texts),
        }
        missing = [name for name, good in checks.items() if not good]
    if missing:
        raise CheckpointError(
            f"{path}: not the state of a run of this version: it has no {', '.join(missing)}"
        )


def saved_batches(state: dict[str, Any]) -> int:
    """How many batches a run had taken when its state was saved."""
    return int(state["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"])


def check_counters(state: dict[str, Any], path: Path, steps: int, accumulated: int) -> None:
    """Refuse counts that no run of so many steps can have: Lightning would never end.

    Args:
        state: from `read_state`.
        path: of it, for the error.
        steps: of the run.
        accumulated: batches of a step.

    Raises:
        CheckpointError: a count is missing or does not fit the others.
    """
    done = state["global_step"]
    try:
        loop = state["loops"]["fit_loop"]
        batches = saved_batches(state)
        stepped = loop["epoch_loop.state_dict"]["_batches_that_stepped"]
        counts = {
            "batch_progress": (batches, loop["epoch_loop.batch_progress"]),
            "scheduler_progress": (done, loop["epoch_loop.scheduler_progress"]),
            "optim_progress": (done, loop["epoch_loop.automatic_optimization.optim_progress"]),
            "epoch_progress": (1, loop["epoch_progress"]),
        }
        within = {
            "val_loop": loop["epoch_loop.val_loop.batch_progress"],
            "validate_loop": state["loops"]["validate_loop"]["batch_progress"],
        }
    except Exception:  # other types raise of many kinds
        raise CheckpointError(f"{path}: not the state of a run: its counts are missing") from None
    wrong = [
        *(name for name, (most, part) in counts.items() if not _all_near(part, most)),
        *(name for name, part in within.items() if not all(0 <= n < 2**40 for n in _ints(part))),
    ]
    if not 0 < done <= steps or batches != done * accumulated:
        wrong.insert(0, f"global_step {done} of {steps}")
    if not isinstance(stepped, int) or stepped not in (done - 1, done):
        wrong.append("_batches_that_stepped")
    if wrong:
        raise CheckpointError(f"{path}: its counts do not fit together: {', '.join(wrong)}")


def check_weights(state: dict[str, Any], path: Path, module: nn.Module) -> None:
    """Refuse weights that do not fit the module, in one line.

    Args:
        state: as it was read.
        path: its file, for the error.
        module: that the weights are for.

    Raises:
        CheckpointError: a tensor is missing, is one too many, or has another shape.
    """
    own, saved = module.state_dict(), state["state_dict"]
    for name in (*own, *saved):
        here, there = (_shape(tensors.get(name)) for tensors in (own, saved))
        if here != there:
            raise CheckpointError(f"{path}: {name} is {there} there, and {here} in this run")


def _shape(tensor: Any) -> str:
    return str(list(tensor.shape)) if isinstance(tensor, Tensor) else "none"


def _all_near(part: Any, most: int) -> bool:
    """Whether all counts are the same number, some of them one behind, as in the middle of a step;
    0 is a loop that was not in use."""
    return all(n in (most, most - 1, 0) for n in _ints(part))


def _ints(part: Any) -> Iterator[int]:
    if isinstance(part, dict):
        for value in part.values():
            yield from _ints(value)
    elif not isinstance(part, bool):
        yield part if isinstance(part, int) else -1


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
