# SPDX-License-Identifier: BSD-3-Clause
"""``maskattn eval``: the scores of a checkpoint on labelled images, as tables and as JSON."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskattn_kernels.common.atomic import replace_file
from maskattn_kernels.common.background import ahead, batched, map_ahead
from maskattn_kernels.common.command_line import Parser, positive, torch_device
from maskattn_kernels.segmentation.data.arguments import add_data_arguments, open_named
from maskattn_kernels.segmentation.data.augmentation import fit
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.opening import SPLITS
from maskattn_kernels.segmentation.data.sample import Sample, SegmentationDataset
from maskattn_kernels.segmentation.model.checkpoints import Checkpoint
from maskattn_kernels.segmentation.model.grouping import Panoptic, group
from maskattn_kernels.segmentation.model.label_sizes import resize_labels
from maskattn_kernels.segmentation.scoring.metrics import SegmentationMetrics

__all__ = ["evaluate", "main", "tables"]

Scores = dict[str, Any]


def evaluate(
    checkpoint: Checkpoint,
    dataset: SegmentationDataset,
    *,
    batch_size: int = 16,
    device: torch.device | str = "cpu",
) -> dict[str, Scores]:
    """Score a checkpoint on a data set.

    Args:
        checkpoint: its network is moved to the device.
        dataset: labelled; of the classes of the checkpoint.
        batch_size: images that go through the network together.
        device: to compute on.

    Returns:
        ``{"network size": scores, "original size": scores}``. At the first, labels are resized as
        in training; at the second, predictions are resized to the labels. Each scores is
        ``{"mean": {"mIoU": .., ..}, "classes": {"sky": {"IoU": .., ..}, ..}}``, 0 to 100, NaN where
        there is nothing to score.

    Raises:
        DataError: other classes, no labels, or a sample that cannot be read.
    """
    _check_classes(checkpoint, dataset)
    network = checkpoint.network.to(device).eval()
    metrics = {
        size: SegmentationMetrics(checkpoint.classes, network.task)
        for size in ("network size", "original size")
    }
    reader = _Reader(dataset, checkpoint.size)
    done = 0
    for batch in ahead(batched(map_ahead(reader, range(len(dataset))), batch_size)):
        images = torch.stack([pixels for _, pixels, _, _ in batch]).to(device)
        with torch.inference_mode():
            found = group(network(images), checkpoint.classes.things)
            labels = {
                "semantic": torch.stack([s for _, _, s, _ in batch]),
                "instance": torch.stack([i for _, _, _, i in batch]),
            }
            metrics["network size"].update(found, labels)
            for i, (sample, *_) in enumerate(batch):
                one = _at_own_size(found, i, sample.image.shape[:2])
                metrics["original size"].update(one, _labels_of(sample))
        done += len(batch)
        print(f"\r{done}/{len(dataset)} images", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return {
        size: {"mean": metric.compute(), "classes": metric.per_class()}
        for size, metric in metrics.items()
    }


class _Reader:
    """Reads a sample, whole and fitted to the network."""

    def __init__(self, dataset: SegmentationDataset, size: int) -> None:
        self.dataset, self.size = dataset, size

    def __call__(self, index: int) -> tuple[Sample, torch.Tensor, torch.Tensor, torch.Tensor]:
        sample = self.dataset[index]
        if sample.semantic is None:
            raise DataError(f"{sample.name}: has no labels, and without them there are no scores")
        square = fit(sample, self.size)
        image = torch.from_numpy(square.image.transpose(2, 0, 1).copy())
        semantic = torch.from_numpy(square.semantic.astype(np.int64))
        return sample, image, semantic, torch.from_numpy(square.instance.astype(np.int64))


def _at_own_size(found: Panoptic, index: int, size: tuple[int, int]) -> Panoptic:
    one = Panoptic(*(part[index : index + 1] for part in found))
    return one._replace(
        semantic=resize_labels(one.semantic, size), instance=resize_labels(one.instance, size)
    )


def _labels_of(sample: Sample) -> dict[str, torch.Tensor]:
    semantic = np.asarray(sample.semantic, dtype=np.int64)
    none = np.zeros_like(semantic)
    instance = none if sample.instance is None else sample.instance.astype(np.int64)
    return {
        "semantic": torch.from_numpy(semantic)[None],
        "instance": torch.from_numpy(instance)[None],
    }


def _check_classes(checkpoint: Checkpoint, dataset: SegmentationDataset) -> None:
    ours, theirs = checkpoint.classes, dataset.classes
    if (ours.names, ours.is_thing) != (theirs.names, theirs.is_thing):
        differing = next(
            (f"{a!r} and {b!r}" for a, b in zip(ours.names, theirs.names, strict=False) if a != b),
            f"{len(ours)} and {len(theirs)} classes, or other things",
        )
        raise DataError(f"checkpoint and data have other classes: {differing}")


def tables(scores: dict[str, Scores], size: int) -> str:
    """Scores for people: means, and a row a class; a class without anything to score has dashes.

    Args:
        scores: from `evaluate`.
        size: side of the network's images.
    """
    return "\n\n".join(_table(scores[where], where, size) for where in scores)


def _table(scores: Scores, where: str, size: int) -> str:
    title = f"at {size} x {size}" if where == "network size" else "at original size"
    rows = {**scores["classes"], "mean": scores["mean"]}
    columns = list(scores["mean"])
    width = max(len(name) for name in rows)
    lines = [title, " ".join([" " * width, *(f"{c:>6}" for c in columns)])]
    for name, row in rows.items():
        # A class has an IoU, their mean is the mIoU.
        values = (row.get(c, row.get("IoU", math.nan)) for c in columns)
        cells = ["     -" if math.isnan(value) else f"{value:6.1f}" for value in values]
        lines.append(" ".join([f"{name:<{width}}", *cells]))
    return "\n".join(lines)


def _without_nan(value: Any) -> Any:
    """For JSON, which has no NaN."""
    if isinstance(value, dict):
        return {name: _without_nan(part) for name, part in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def main(argv: Sequence[str]) -> int:
    """Run ``maskattn eval`` with the arguments ``argv``; returns the exit code."""
    parser = Parser(prog="maskattn eval", description="Score a checkpoint on labelled images.")
    add = parser.add_argument
    add("--checkpoint", required=True, help="folder as `maskattn train` leaves, or hub id")
    add_data_arguments(parser)
    add("--split", default="val", choices=SPLITS, help="default val")
    add("--batch_size", type=positive, default=16, help="default 16")
    add("--device", default="auto", help="cpu, cuda, .. (default: a GPU if there is one)")
    add("--out", type=Path, default=Path("out/eval.json"), help="JSON (default out/eval.json)")
    given = parser.parse_args(argv)
    device = torch_device(given.device)
    checkpoint = Checkpoint.from_pretrained(given.checkpoint)
    dataset = open_named(given, given.split)
    scores = evaluate(checkpoint, dataset, batch_size=given.batch_size, device=device)
    print(tables(scores, checkpoint.size))
    report = {
        "checkpoint": given.checkpoint,
        "data": given.data,
        "split": given.split,
        "images": len(dataset),
        "size": checkpoint.size,
        "scores": _without_nan(scores),
    }
    text = json.dumps(report, indent=2) + "\n"
    replace_file(given.out, lambda path: path.write_text(text, encoding="utf-8"))
    print(f"\nwritten: {given.out}")
    return 0
