# SPDX-License-Identifier: BSD-3-Clause
"""``maskattn eval``: the scores of a checkpoint on labelled images, as tables and as JSON."""

import json
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskattn_kernels.common.atomic import replace_file
from maskattn_kernels.common.command_line import Parser, positive, torch_device
from maskattn_kernels.common.progress import Progress
from maskattn_kernels.segmentation.checkpoints import Checkpoint, as_checkpoint
from maskattn_kernels.segmentation.data.arguments import add_data_arguments, open_named
from maskattn_kernels.segmentation.data.errors import DataError, told
from maskattn_kernels.segmentation.data.frame import Frame, FrameKind
from maskattn_kernels.segmentation.data.opening import SPLITS
from maskattn_kernels.segmentation.data.sample import Sample, SegmentationDataset
from maskattn_kernels.segmentation.model.grouping import Panoptic
from maskattn_kernels.segmentation.model.prepared import (
    add_inference_arguments,
    add_score_argument,
)
from maskattn_kernels.segmentation.results import Segmentation
from maskattn_kernels.segmentation.scoring.metrics import SegmentationMetrics

__all__ = ["evaluate", "main", "tables"]

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
        precision, compile, tta, min_score: as in `Checkpoint.segment`.

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
    checkpoint = as_checkpoint(checkpoint)
    _check_classes(checkpoint, dataset)
    metrics = {
        size: SegmentationMetrics(checkpoint.classes, checkpoint.network.task)
        for size in ("network size", "original size")
    }
    reads = (partial(_labelled, dataset, index) for index in range(len(dataset)))
    results = checkpoint.segment_stream(
        reads,
        batch_size=batch_size,
        device=device,
        failed=failed,
        precision=precision,
        compile=compile,
        tta=tta,
        min_score=min_score,
    )
    done = 0
    for done, found in enumerate(results, 1):
        own = (found.semantic, found.instance)
        seen = (found.frame_semantic, found.frame_instance)
        metrics["original size"].update(_batch_of_one(found, *own), _labels(found.sample))
        metrics["network size"].update(_batch_of_one(found, *seen), _labels(found.frame))
        if progress is not None:
            progress(done)
    if len(dataset) and not done:
        raise DataError(f"dataset: none of its {len(dataset)} samples can be read and scored")
    return {
        size: {"mean": metric.compute(), "classes": _by_class(metric)}
        for size, metric in metrics.items()
    }


def _by_class(metric: SegmentationMetrics) -> dict[str, dict[str, float]]:
    pixels = metric.labelled_pixels()
    return {name: {**row, "pixels": pixels[name]} for name, row in metric.per_class().items()}


def _labelled(dataset: SegmentationDataset, index: int) -> Sample:
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


def _check_classes(checkpoint: Checkpoint, dataset: SegmentationDataset) -> None:
    ours, theirs = checkpoint.classes, dataset.classes
    if (ours.names, ours.is_thing) != (theirs.names, theirs.is_thing):
        differing = next(
            (f"{a!r} and {b!r}" for a, b in zip(ours.names, theirs.names, strict=False) if a != b),
            f"{len(ours)} and {len(theirs)} classes, or other things",
        )
        raise DataError(f"checkpoint and data have other classes: {differing}")


def tables(scores: dict[str, Scores], size: tuple[int, int], frame: FrameKind) -> str:
    """Scores for people: means, and a row a class with its number of labelled pixels.

    A class without anything to score has dashes.

    Args:
        scores: from `evaluate`.
        size, frame: of the checkpoint.
    """
    titles = {"original size": "at original size"}
    if frame != "own":  # else both are the same
        titles["network size"] = f"{_FRAMES[frame]} {size[0]} x {size[1]}"
    return "\n\n".join(_table(scores[w], titles[w]) for w in scores if w in titles)


_FRAMES = {"fit": "fitted into", "squeeze": "at"}


def _table(scores: Scores, title: str) -> str:
    rows = {**scores["classes"], "mean": scores["mean"]}
    columns = list(scores["mean"])
    width = max(len(name) for name in rows)
    lines = [title, " ".join([" " * width, *(f"{c:>6}" for c in columns), f"{'pixels':>10}"])]
    for name, row in rows.items():
        # A class has an IoU, their mean is the mIoU.
        values = (row.get(c, row.get("IoU", math.nan)) for c in columns)
        cells = ["     -" if math.isnan(value) else f"{value:6.1f}" for value in values]
        cells += [f"{row['pixels']:10d}"] if "pixels" in row else []
        lines.append(" ".join([f"{name:<{width}}", *cells]))
    return "\n".join(lines)


def _only_predicted(scores: dict[str, Scores]) -> list[str]:
    """Lines on classes that lower the mean though no label has them."""
    rows = scores["original size"]["classes"]
    names = [n for n, row in rows.items() if not row["pixels"] and not math.isnan(row["IoU"])]
    return [f"{name}: no pixel is labelled so, its IoU of 0 counts in mIoU" for name in names]


def _without_nan(value: Any) -> Any:
    """For JSON, which has no NaN."""
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def main(argv: Sequence[str]) -> int:
    """Run ``maskattn eval`` with the arguments ``argv``; returns the exit code."""
    parser = Parser(prog="maskattn eval", description="Score a checkpoint on labelled images.")
    add = parser.add_argument
    add("--checkpoint", required=True, help="folder as `maskattn train` leaves, or hf:owner/name")
    add_data_arguments(parser)
    add("--split", default="val", choices=SPLITS, help="default val")
    add("--batch_size", type=positive, default=16, help="default 16")
    add("--device", default="auto", help="cpu, cuda, .. (default: a GPU if there is one)")
    add_inference_arguments(parser)
    add_score_argument(parser)
    add("--out", type=Path, default=Path("out/eval.json"), help="JSON (default out/eval.json)")
    given = parser.parse_args(argv)
    device = torch_device(given.device)
    checkpoint = Checkpoint.from_pretrained(given.checkpoint)
    dataset = open_named(given, given.split)
    failed: list[str] = []
    with Progress() as progress:
        scores = evaluate(
            checkpoint,
            dataset,
            batch_size=given.batch_size,
            device=device,
            progress=lambda done: progress.show(f"{done}/{len(dataset)} images"),
            failed=lambda error: failed.append(str(error)),
            precision=given.precision,
            compile=given.compile,
            tta=given.tta,
            min_score=given.min_score,
        )
    print(tables(scores, checkpoint.size, checkpoint.frame))
    for note in _only_predicted(scores):
        print(f"note: {note}", file=sys.stderr)
    report = {
        "checkpoint": given.checkpoint,
        "data": given.data,
        "split": given.split,
        "images": len(dataset) - len(failed),
        "failed": failed,
        "size": list(checkpoint.size),
        "frame": checkpoint.frame,
        "precision": given.precision,
        "tta": given.tta,
        "min_score": given.min_score,
        "scores": _without_nan(scores),
    }
    text = json.dumps(report, indent=2) + "\n"
    replace_file(given.out, lambda path: path.write_text(text, encoding="utf-8"))
    print(f"\nwritten: {given.out}")
    return told(failed)
