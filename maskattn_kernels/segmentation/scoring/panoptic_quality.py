# SPDX-License-Identifier: BSD-3-Clause
"""Panoptic quality: torchmetrics' metric, counted faster, and as COCO's code does."""

import math

import numpy as np
import torch
from torch import Tensor
from torchmetrics.detection import PanopticQuality

from maskattn_kernels.segmentation.data.sample import VOID, Classes

__all__ = ["ClassQuality"]

_OBJECTS = 1 << 32


class ClassQuality(PanopticQuality):
    """PQ, SQ and RQ (C,3) of each class, 0 to 1; NaN for a class that never occurs.

    States and formula are torchmetrics'; the counting is ours. Theirs sorts pixels as rows, 0.3 s
    for an image of 128 x 128. It also forgives a missed object that lies mostly on predicted void,
    which the definition (Kirillov et al., Panoptic Segmentation, 2019) and COCO's code do not.

    Args:
        classes: things and stuff.
    """

    def __init__(self, classes: Classes) -> None:
        stuffs = set(range(len(classes))) - set(classes.things)
        super().__init__(classes.things, stuffs, return_sq_and_rq=True, return_per_class=True)
        self.classes = classes
        self.place = [self.cat_id_to_continuous_id[number] for number in range(len(classes))]

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            preds: (B,H,W,2), the predicted class (or `VOID`) and object of each pixel; a pixel of
                a thing class without an object (0) is void.
            target: the labels in the same form.
        """
        counts = np.zeros((4, len(self.classes)))
        for predicted, true in zip(preds.cpu().numpy(), target.cpu().numpy(), strict=True):
            counts += self._count(self._segments(predicted), self._segments(true))
        states = (self.iou_sum, self.true_positives, self.false_positives, self.false_negatives)
        for state, count in zip(states, counts, strict=True):
            state[self.place] += torch.from_numpy(count).to(state)

    def compute(self) -> Tensor:
        occurs = (self.true_positives + self.false_positives + self.false_negatives) > 0
        return torch.where(occurs[:, None], super().compute(), math.nan)[self.place]

    def _segments(self, maps: np.ndarray) -> np.ndarray:
        """One number for each segment (H,W): class * 2**32 + object; `VOID` * 2**32 for void."""
        semantic, instance = maps[..., 0], maps[..., 1]
        counted = self.classes.where_things(semantic)
        classes = np.where(counted & (instance == 0), VOID, semantic).astype(np.int64)
        return classes * _OBJECTS + np.where(counted, instance, 0)

    def _count(self, predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
        """Sum of IoUs, matches, false and missed segments (4,C) of one image."""
        ours, our_places = np.unique(predicted, return_inverse=True)
        theirs, their_places = np.unique(true, return_inverse=True)
        pairs = our_places.ravel() * len(theirs) + their_places.ravel()
        shared = np.bincount(pairs, minlength=len(ours) * len(theirs))
        shared = shared.reshape(len(ours), len(theirs)).astype(np.float64)
        our_class, their_class = ours // _OBJECTS, theirs // _OBJECTS

        area = shared.sum(axis=1)
        on_void = shared[:, their_class == VOID].sum(axis=1)
        union = (area - on_void)[:, None] + shared.sum(axis=0) - shared
        valid = (our_class[:, None] == their_class) & (their_class != VOID)
        iou = np.divide(shared, union, out=np.zeros_like(shared), where=valid & (union > 0))
        match = iou > 0.5

        wrong = (our_class != VOID) & ~match.any(axis=1) & (on_void <= 0.5 * area)
        missed = (their_class != VOID) & ~match.any(axis=0)
        sums = (
            (their_class, np.where(match, iou, 0).sum(axis=0)),
            (their_class, match.any(axis=0)),
            (our_class, wrong),
            (their_class, missed),
        )
        counts = [np.bincount(c, weights=w, minlength=VOID + 1) for c, w in sums]
        return np.stack(counts)[:, : len(self.classes)]
