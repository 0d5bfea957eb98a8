# SPDX-License-Identifier: BSD-3-Clause
"""Learning from images without labels: a trained network labels them where it is sure."""

import math
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.images import ImageFiles
from maskattn_kernels.segmentation.data.sample import VOID, Sample, SegmentationDataset

__all__ = ["LabelledAndPseudo", "PseudoLabelled"]

LEVELS = 256  # of entropy


class PseudoLabelled:
    """Images of a folder with the labels that a checkpoint gives them where it is surest.

    Of the pixels that the checkpoint gives a class, over all images, those of lowest entropy keep
    it; the others are void, so no loss counts them. One bound for all classes would leave hardly a
    pixel of those of which a teacher with few labels is seldom sure (class-balanced self-training:
    Zou et al., "Unsupervised domain adaptation for semantic segmentation", ECCV 2018).

    Args:
        checkpoint: the teacher; its classes are those of the samples.
        folder: of images.
        share: above 0, to 1: of the pixels of each class that keep it.
        confidence: 0 to 1; pixels whose class has a lower probability are void too.
        device: the teacher computes on.

    Attributes:
        kept: the fraction of pixels with a label.
        notes: on files of the folder that are passed over or cannot be read.

    Raises:
        DataError: no folder, or no image in it that can be read.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        folder: Path,
        share: float,
        confidence: float = 0.0,
        device: torch.device | str = "cpu",
    ) -> None:
        self._images = ImageFiles(folder, checkpoint.classes)
        self.classes = checkpoint.classes
        failed: list[str] = []
        results = checkpoint.segment_stream(
            (partial(self._images.__getitem__, index) for index in range(len(self._images))),
            device=device,
            confidence=confidence,
            measured=True,
            failed=lambda error: failed.append(str(error)),
        )
        self._places: list[int] = []
        self._labels: list[_Packed] = []
        pixels = np.zeros((VOID + 1, LEVELS), np.int64)
        for found in results:
            levels = _levels(found.measured.entropy, len(self.classes))
            self._places.append(found.place)
            self._labels.append(_Packed(found.semantic, found.instance, levels))
            there = _resized(levels, found.image.shape[:2])
            index = found.semantic.astype(np.int64) * LEVELS + there
            pixels += np.bincount(index.ravel(), minlength=pixels.size).reshape(pixels.shape)
        if not self._labels:
            raise DataError(f"{folder}: no image there can be read, such as {failed[0]}")
        below = pixels.cumsum(1)
        self._highest = np.argmax(below >= share * below[:, -1:], axis=1)
        kept = np.take_along_axis(below, self._highest[:, None], 1)
        self.kept = kept[:VOID].sum() / pixels.sum()
        self.notes = (*self._images.notes, *(f"left out: {line}" for line in failed))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:
        sample = self._images[self._places[index]]
        semantic, instance, levels = self._labels[index].unpacked(sample.image.shape[:2])
        unsure = levels > self._highest[semantic]
        semantic, instance = np.where(unsure, VOID, semantic), np.where(unsure, 0, instance)
        return replace(sample, semantic=semantic, instance=instance)


def _levels(entropy: np.ndarray, classes: int) -> np.ndarray:
    """Entropy as uint8, 0 = sure; finer where it is low, as it is nearly everywhere."""
    part = entropy / math.log(max(2, classes))
    return np.rint(np.sqrt(part.clip(0, 1)) * (LEVELS - 1)).astype(np.uint8)


def _resized(levels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """By `_levels`, of a frame brought to the size of its image."""
    return np.asarray(Image.fromarray(levels).resize(shape[::-1], Image.Resampling.BILINEAR))


class _Packed:
    """The labels of an image, small enough to keep those of thousands of photographs."""

    def __init__(self, semantic: np.ndarray, instance: np.ndarray, levels: np.ndarray) -> None:
        self._semantic = zlib.compress(semantic.astype(np.uint8).tobytes(), 1)
        self._instance = zlib.compress(instance.astype(np.int32).tobytes(), 1)
        self._levels, self._frame = zlib.compress(levels.tobytes(), 1), levels.shape

    def unpacked(self, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Classes and objects, (H,W) as they were, and levels of entropy, brought to that size."""
        semantic = np.frombuffer(zlib.decompress(self._semantic), dtype=np.uint8)
        instance = np.frombuffer(zlib.decompress(self._instance), dtype=np.int32)
        levels = np.frombuffer(zlib.decompress(self._levels), dtype=np.uint8).reshape(self._frame)
        return semantic.reshape(shape), instance.reshape(shape), _resized(levels, shape)


class LabelledAndPseudo:
    """Labelled samples, repeated until they are at least half of all, and pseudo-labelled ones.

    Args:
        labelled: the set.
        chosen: numbers of its samples to use.
        pseudo: the others.
    """

    def __init__(
        self,
        labelled: SegmentationDataset,
        chosen: Sequence[int] | np.ndarray,
        pseudo: SegmentationDataset,
    ) -> None:
        self.labelled, self.chosen, self.pseudo = labelled, chosen, pseudo
        self.classes = labelled.classes
        self.first = len(chosen) * max(1, -(-len(pseudo) // len(chosen)))

    def __len__(self) -> int:
        return self.first + len(self.pseudo)

    def __getitem__(self, index: int) -> Sample:
        if index < self.first:
            return self.labelled[int(self.chosen[index % len(self.chosen)])]
        return self.pseudo[index - self.first]
