# SPDX-License-Identifier: BSD-3-Clause
"""Average precision of masks by pycocotools, as a metric whose state sums over processes."""

import contextlib
import io
import json
from collections import Counter
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from maskattn_kernels.segmentation.data.coco_format import categories
from maskattn_kernels.segmentation.data.run_lengths import outlines
from maskattn_kernels.segmentation.data.sample import VOID, Classes

__all__ = ["AveragePrecision"]


class AveragePrecision(Metric):
    """AP (mean over IoU .50 to .95) and AP50 of masks for each class, from COCOeval.

    Args:
        classes: AP is that of the thing classes; the others are NaN.
    """

    full_state_update = False
    higher_is_better = True
    images: list[Tensor]

    def __init__(self, classes: Classes) -> None:
        super().__init__()
        self.classes = classes
        # Each image is a line of JSON, as bytes: tensors are what processes can exchange.
        self.add_state("images", default=[], dist_reduce_fx="cat")

    def update(
        self,
        instance: Tensor,
        labels: Tensor,
        scores: Tensor,
        true_semantic: Tensor,
        true_instance: Tensor,
    ) -> None:
        """Add a batch.

        Args:
            instance: predicted objects (B,H,W), 0 = none.
            labels: class of each object (B,K), `VOID` = not in use.
            scores: of each object (B,K).
            true_semantic: labels (B,H,W).
            true_instance: labels (B,H,W), 0 = none.
        """
        maps = [t.cpu().numpy() for t in (instance, labels, scores, true_semantic, true_instance)]
        for predicted, classes, points, semantic, objects in zip(*maps, strict=True):
            on_void = np.bincount(predicted[semantic == VOID], minlength=len(classes) + 1)
            area = np.bincount(predicted.ravel(), minlength=len(classes) + 1)
            ignored = on_void[1 : len(classes) + 1] > 0.5 * area[1 : len(classes) + 1]
            found = self._found(predicted, np.where(ignored, VOID, classes), points)
            height, width = semantic.shape
            line = json.dumps([found, self._truth(semantic, objects), height, width]) + "\n"
            array = np.frombuffer(line.encode("ascii"), dtype=np.uint8).copy()
            self.images.append(torch.from_numpy(array).to(self.device))

    def _found(
        self, instance: np.ndarray, labels: np.ndarray, scores: np.ndarray
    ) -> list[dict[str, Any]]:
        """The predicted objects of thing classes."""
        found = []
        for outline in outlines(instance):
            label = int(labels[outline.number - 1])
            if label != VOID and self.classes.is_thing[label]:
                category, score = self.classes.ids[label], float(scores[outline.number - 1])
                row = {"category_id": category, "segmentation": outline.segmentation}
                found.append({**row, "score": score})
        return found

    def _truth(self, semantic: np.ndarray, objects: np.ndarray) -> list[dict[str, Any]]:
        """The labelled objects; each has the class of most of its pixels."""
        truth = []
        for outline in outlines(objects):
            label = int(np.bincount(semantic[objects == outline.number]).argmax())
            if label != VOID and self.classes.is_thing[label]:
                category = self.classes.ids[label]
                row = {"category_id": category, "segmentation": outline.segmentation}
                truth.append({**row, "area": outline.area})
        return truth

    def compute(self) -> Tensor:
        """float64 (C,2): AP and AP50 from 0 to 1; NaN for classes without labelled objects."""
        result = torch.full((len(self.classes), 2), torch.nan, dtype=torch.float64)
        content = dim_zero_cat(self.images).cpu().numpy().tobytes() if len(self.images) else b""
        images = [json.loads(line) for line in content.splitlines()]
        truth = [dict(row, image_id=i) for i, (_, rows, *_) in enumerate(images) for row in rows]
        if not truth:
            return result
        found = [dict(row, image_id=i) for i, (rows, *_) in enumerate(images) for row in rows]
        sizes = [{"id": i, "height": h, "width": w} for i, (*_, h, w) in enumerate(images)]
        precision = self._evaluate(sizes, truth, found)
        for place, number in enumerate(self.classes.things):
            for column, values in enumerate((precision[:, :, place], precision[0, :, place])):
                if (values > -1).any():
                    result[number, column] = float(values[values > -1].mean())
        return result

    def _evaluate(
        self, sizes: list[dict[str, Any]], truth: list[dict[str, Any]], found: list[dict[str, Any]]
    ) -> np.ndarray:
        """Precision by (IoU threshold, recall, thing class); -1 = no labelled object."""
        ids = [self.classes.ids[number] for number in self.classes.things]
        if not found:
            labelled = {row["category_id"] for row in truth}
            return np.array([[[0.0 if number in labelled else -1.0 for number in ids]]])
        with contextlib.redirect_stdout(io.StringIO()):
            labels = COCO()
            labels.dataset = {
                "images": sizes,
                "annotations": [
                    dict(row, id=i, iscrowd=0, bbox=[0, 0, 0, 0])
                    for i, row in enumerate(truth, start=1)
                ],
                "categories": categories(self.classes),
            }
            labels.createIndex()
            run = COCOeval(labels, labels.loadRes(found), "segm")
            run.params.catIds = ids
            run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
            # COCO's limit of 100 an image would leave out objects of crowded ones.
            run.params.maxDets = [max(Counter(row["image_id"] for row in found).values())]
            run.evaluate()
            run.accumulate()
        # COCOeval sorts the categories by id.
        return run.eval["precision"][..., np.argsort(np.argsort(ids)), 0, 0]
