# SPDX-License-Identifier: BSD-3-Clause
"""mIoU, PQ and AP by the libraries that define them: torchmetrics and pycocotools.

Rules that hold for all three: void in the labels (255) is left out; pixels of a thing class without
an object are void; a predicted object that lies mostly on void counts for nothing; classes that
occur neither in labels nor in predictions leave the mean alone.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.classification import MulticlassJaccardIndex

from maskattn_kernels.segmentation.data.sample import VOID, Classes
from maskattn_kernels.segmentation.model.grouping import Panoptic
from maskattn_kernels.segmentation.model.network import TASKS
from maskattn_kernels.segmentation.scoring.average_precision import AveragePrecision
from maskattn_kernels.segmentation.scoring.panoptic_quality import ClassQuality

__all__ = ["SegmentationMetrics"]


class SegmentationMetrics(nn.Module):
    """The scores of a task over a whole set, 0 to 100.

    Its states are torchmetrics': they move with the module, and `compute` sums them over processes.

    Args:
        classes: of the data set.
        task: "semantic" (mIoU), "instance" (mIoU, AP, AP50) or "panoptic" (all).

    Raises:
        ValueError: another task.

    Example:
        >>> classes = Classes(("sky", "sea"), (False, False), ((0, 0, 9), (0, 9, 9)), (0, 1))
        >>> metrics = SegmentationMetrics(classes, "semantic")
        >>> labels, none = torch.tensor([[[0, 0, 1, 255]]]), torch.zeros(1, 1, 4)
        >>> found = Panoptic(torch.tensor([[[0, 1, 1, 1]]]), none, none[0], none[0])
        >>> metrics.update(found, {"semantic": labels})
        >>> metrics.compute()
        {'mIoU': 50.0}
    """

    def __init__(self, classes: Classes, task: str = "panoptic") -> None:
        super().__init__()
        if task not in TASKS:
            raise ValueError(f"task: expected one of {', '.join(TASKS)}, got {task!r}")
        self.classes = classes
        self.task = task
        self.iou = _ClassIoU(len(classes))
        self.quality = ClassQuality(classes) if task == "panoptic" else None
        self.precision = None if task == "semantic" else AveragePrecision(classes)

    def update(self, prediction: Panoptic, batch: Mapping[str, Any]) -> None:
        """Add a batch; maps of labels and predictions have the same H and W.

        Args:
            prediction: the semantic task needs only its ``semantic``.
            batch: ``semantic`` (B,H,W), ``instance`` (B,H,W).

        Raises:
            ValueError: another shape, or numbers that are neither of a class nor `VOID`.
        """
        device = prediction.semantic.device
        semantic = batch["semantic"].to(device).long()
        if prediction.semantic.shape != semantic.shape:
            raise ValueError(
                f"prediction.semantic: expected the shape {tuple(semantic.shape)} of the labels, "
                f"got {tuple(prediction.semantic.shape)}"
            )
        self._check_numbers("prediction.semantic", prediction.semantic)
        self._check_numbers('batch["semantic"]', semantic)
        self.iou.update(prediction.semantic, semantic)
        if self.precision is None:
            return
        instance = batch["instance"].to(device).long()
        if self.quality is not None:
            predicted = torch.stack([prediction.semantic, prediction.instance], dim=-1)
            self.quality.update(predicted, torch.stack([semantic, instance], dim=-1))
        self.precision.update(
            prediction.instance, prediction.labels, prediction.scores, semantic, instance
        )

    def compute(self) -> dict[str, float]:
        """The means over classes: "mIoU", "PQ", "SQ", "RQ", "AP", "AP50", as the task has them.

        A score without a single class to score is NaN.
        """
        return {key: _mean(values) for key, values in self._by_class().items()}

    def per_class(self) -> dict[str, dict[str, float]]:
        """The same scores for each class, by its name; NaN where there is nothing to score."""
        columns = self._by_class()
        return {
            name: {
                "IoU" if key == "mIoU" else key: float(values[number])
                for key, values in columns.items()
            }
            for number, name in enumerate(self.classes.names)
        }

    def labelled_pixels(self) -> dict[str, int]:
        """How many pixels of the labels each class has, by its name."""
        counts = self.iou.confmat.sum(dim=1).tolist()
        return {name: int(counts[number]) for number, name in enumerate(self.classes.names)}

    def reset(self) -> None:
        """Forget all batches."""
        for metric in (self.iou, self.quality, self.precision):
            if metric is not None:
                metric.reset()

    def _check_numbers(self, what: str, numbers: Tensor) -> None:
        count = len(self.classes)
        wrong = numbers[((numbers < 0) | (numbers >= count)) & (numbers != VOID)]
        if len(wrong):
            raise ValueError(
                f"{what}: expected class numbers from 0 to {count - 1}, or {VOID} for void, got "
                f"{int(wrong[0])}"
            )

    def _by_class(self) -> dict[str, Tensor]:
        found = {"mIoU": self.iou.compute()}
        if self.quality is not None:
            found.update(zip(("PQ", "SQ", "RQ"), self.quality.compute().unbind(dim=1), strict=True))
        if self.precision is not None:
            found.update(zip(("AP", "AP50"), self.precision.compute().unbind(dim=1), strict=True))
        return {key: 100 * values.double().cpu() for key, values in found.items()}


class _ClassIoU(MulticlassJaccardIndex):
    """IoU (C,) of each class from one confusion matrix; NaN for a class that never occurs.

    Predictions may be `VOID`, which is wrong wherever there is a label: a class of its own for
    torchmetrics, left out of the result.
    """

    def __init__(self, classes: int) -> None:
        super().__init__(classes + 1, average="none", ignore_index=VOID, validate_args=False)

    def update(self, prediction: Tensor, labels: Tensor) -> None:
        none = self.num_classes - 1
        super().update(prediction.masked_fill(prediction == VOID, none), labels)

    def compute(self) -> Tensor:
        occurs = (self.confmat.sum(dim=0) + self.confmat.sum(dim=1)) > 0
        return torch.where(occurs, super().compute(), math.nan)[:-1]


def _mean(values: Tensor) -> float:
    return float(values.nanmean())
