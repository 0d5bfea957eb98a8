# SPDX-License-Identifier: BSD-3-Clause
"""At the end of a run: what its images are like, kept in its checkpoints to tell drift by."""

from functools import partial
from pathlib import Path

import numpy as np
import torch

from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.batches import Batches
from maskattn_kernels.segmentation.data.sample import SegmentationDataset
from maskattn_kernels.segmentation.drift import Reference, Statistics
from maskattn_kernels.segmentation.training.processes import say

__all__ = ["keep_reference"]

IMAGES = 500  # at most, of each set


def keep_reference(out: Path, batches: Batches, device: torch.device) -> None:
    """Add a `Reference` to the checkpoints ``best`` and ``final`` of a run.

    Images are measured as ``maskattn predict`` does it, whole and not augmented.

    Args:
        out: folder of the run.
        batches: its data.
        device: to compute on.

    Raises:
        WriteError: a checkpoint could not be written; the one before is still good.
    """
    val, train = batches.dataset("val"), batches.dataset("train")
    say(f"looking at up to {IMAGES} images of each split once more, to tell others by them")
    # A run that goes on in another folder has no "best" until it is better than before.
    names = [name for name in ("best", "final") if (out / name).is_dir()]
    checkpoints = {name: Checkpoint.from_pretrained(out / name) for name in names}
    best = checkpoints.get("best")
    for name, checkpoint in checkpoints.items():
        if name == "final" and best is not None and _same_weights(best, checkpoint):
            checkpoint.reference = best.reference
        else:
            validation = _statistics(checkpoint, val, np.arange(len(val)), device)
            training = _statistics(checkpoint, train, batches.labelled(), device)
            checkpoint.reference = Reference.of(validation, training) if validation else None
        checkpoint.save_pretrained(out / name)


def _statistics(
    checkpoint: Checkpoint, dataset: SegmentationDataset, chosen: np.ndarray, device: torch.device
) -> list[Statistics]:
    """Of at most `IMAGES` of the chosen images, spread over all of them."""
    spread = np.linspace(0, len(chosen) - 1, min(IMAGES, len(chosen))).round().astype(int)
    reads = (partial(dataset.__getitem__, int(index)) for index in chosen[spread])
    # Whatever cannot be read was told when it was to be trained with.
    found = checkpoint.segment_stream(
        reads, device=device, measured=True, failed=lambda error: None
    )
    return [one.measured.statistics for one in found]


def _same_weights(one: Checkpoint, other: Checkpoint) -> bool:
    theirs = other.network.state_dict()
    return all(torch.equal(t, theirs[name]) for name, t in one.network.state_dict().items())
