# SPDX-License-Identifier: BSD-3-Clause
"""The scores of a checkpoint on labelled images."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskattn_kernels.models.selector_dial import Keep
from maskattn_kernels.segmentation.checkpoints import Checkpoint, as_checkpoint
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.frame import Frame
from maskattn_kernels.segmentation.data.sample import Sample, SegmentationDataset
from maskattn_kernels.segmentation.model.grouping import Panoptic
from maskattn_kernels.segmentation.results import Segmentation
from maskattn_kernels.segmentation.runtimes import Exported
from maskattn_kernels.segmentation.scoring.metrics import SegmentationMetrics
from maskattn_kernels.segmentation.tiling import OVERLAP

__all__ = ["Scores", "Tally", "check_classes", "evaluate", "labelled"]

Scores = dict[str, Any]


def evaluate(
    checkpoint: Checkpoint | str | Path,
    dataset: SegmentationDataset,
    *,
    batch_size: int = 16,
    device: str | torch.device = "auto",
    progress: Callable[[int], object] | None = None,
    failed: Callable[[DataError], object] | None = None,
    precision: str = "float32",
    compile: bool = False,
    tta: str | None = None,
    min_score: float = 0.0,
    tiles: int | tuple[int, int] | None = None,
    overlap: float = OVERLAP,
    hybrid: float | None = None,
    keep: Keep | None = None,
    selector: str | None = None,
    measured: bool = False,
    each: Callable[[Segmentation], object] | None = None,
    exported: Exported | None = None,
) -> dict[str, Scores]:
    """Score a checkpoint on a labelled data set.

    Args:
        checkpoint: a `Checkpoint`, or a folder or hub id for `Checkpoint.from_pretrained`.
        dataset: of the checkpoint's classes; see `open_dataset`.
        batch_size: images that go through the network together.
        device: to compute on; "auto" = a GPU if there is one. The network stays there.
        progress: called with the number of images that are done, after each batch.
        failed: called with the error of each sample that cannot be read, in a thread; that sample
            is left out. None = the error is raised.
        precision, compile, tta, min_score, tiles, overlap, hybrid, keep, selector, measured: as in
            `Checkpoint.segment`.
        each: called with each result after it was scored.
        exported: a file made of the checkpoint, which runs in place of its network.

    Returns:
        ``{"network size": scores, "original size": scores}``. The first compares at the size of
        the frames that the network sees, as the validation of a training does; for the second,
        logits are brought to the size of the labels. Each scores is
        ``{"mean": {"mIoU": .., ..}, "classes": {"sky": {"IoU": .., "pixels": ..}, ..}}``, 0 to 100,
        NaN where there is nothing to score; "pixels" are the labelled ones.

    Raises:
        DataError: other classes, no labels, or samples that cannot be read: the first one, or with
            ``failed`` all of them.
        CheckpointError: the checkpoint cannot be read.

    Example:
        >>> from maskattn_kernels.segmentation import Checkpoint, SegmentationNetwork, evaluate
        >>> from maskattn_kernels.segmentation import open_dataset
        >>> dataset = open_dataset("digit-scenes", split="val", count=2)
        >>> classes = dataset.classes
        >>> network = SegmentationNetwork(len(classes), classes.things, width=4, depth=2)
        >>> scores = evaluate(Checkpoint(network, classes, size=32), dataset)
        >>> sorted(scores["original size"]["mean"])
        ['AP', 'AP50', 'PQ', 'RQ', 'SQ', 'mIoU']
    """
    checkpoint = as_checkpoint(checkpoint).with_masks(keep, selector)
    check_classes(checkpoint, dataset)
    tally = Tally(checkpoint)
    reads = (partial(labelled, dataset, index) for index in range(len(dataset)))
    results = checkpoint.segment_stream(
        reads,
        batch_size=batch_size,
        device=device,
        failed=failed,
        precision=precision,
        compile=compile,
        tta=tta,
        min_score=min_score,
        tiles=tiles,
        overlap=overlap,
        hybrid=hybrid,
        measured=measured,
        exported=exported,
    )
    for found in results:
        tally.add(found)
        if each is not None:
            each(found)
        if progress is not None:
            progress(tally.count)
    return tally.scores(dataset)


class Tally:
    """The scores of images that come one after another.

    Args:
        checkpoint: that segments them.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        task = checkpoint.network.task
        self.own, self.seen = (SegmentationMetrics(checkpoint.classes, task) for _ in range(2))
        self.count = 0

    def add(self, found: Segmentation) -> None:
        """Count what was ``found`` in an image with labels."""
        own = (found.semantic, found.instance)
        seen = (found.frame_semantic, found.frame_instance)
        self.own.update(_batch_of_one(found, *own), _labels(found.sample))
        self.seen.update(_batch_of_one(found, *seen), _labels(found.frame))
        self.count += 1

    def scores(self, dataset: SegmentationDataset) -> dict[str, Scores]:
        """What `evaluate` returns.

        Args:
            dataset: that the images are from.

        Raises:
            DataError: none of its images was counted.
        """
        if len(dataset) and not self.count:
            raise DataError(f"dataset: none of its {len(dataset)} samples can be read and scored")
        return {
            size: {"mean": metric.compute(), "classes": _by_class(metric)}
            for size, metric in (("network size", self.seen), ("original size", self.own))
        }


def _by_class(metric: SegmentationMetrics) -> dict[str, dict[str, float]]:
    pixels = metric.labelled_pixels()
    return {name: {**row, "pixels": pixels[name]} for name, row in metric.per_class().items()}


def labelled(dataset: SegmentationDataset, index: int) -> Sample:
    """The sample of a ``dataset`` at an ``index``, if it has labels; else raises `DataError`."""
    sample = dataset[index]
    if sample.semantic is None:
        raise DataError(f"{sample.name}: has no labels, and without labels there are no scores")
    return sample


def _batch_of_one(found: Segmentation, semantic: np.ndarray, instance: np.ndarray) -> Panoptic:
    parts = (semantic.astype(np.int64), instance.astype(np.int64), found.labels.astype(np.int64))
    return Panoptic(*(torch.from_numpy(part)[None] for part in (*parts, found.scores)))


def _labels(sample: Sample | Frame) -> dict[str, torch.Tensor]:
    """The labels of an image as a batch of one."""
    semantic = np.asarray(sample.semantic, dtype=np.int64)
    instance = np.zeros_like(semantic) if sample.instance is None else sample.instance
    labels = {"semantic": semantic, "instance": instance.astype(np.int64)}
    return {name: torch.from_numpy(values)[None] for name, values in labels.items()}


def check_classes(checkpoint: Checkpoint, dataset: SegmentationDataset) -> None:
    """Compare the classes of a ``checkpoint`` and a ``dataset``.

    Raises:
        DataError: they differ.
    """
    ours, theirs = checkpoint.classes, dataset.classes
    if (ours.names, ours.is_thing) != (theirs.names, theirs.is_thing):
        differing = next(
            (f"{a!r} and {b!r}" for a, b in zip(ours.names, theirs.names, strict=False) if a != b),
            f"{len(ours)} and {len(theirs)} classes, or other things",
        )
        raise DataError(f"checkpoint and data have other classes: {differing}")
