# SPDX-License-Identifier: BSD-3-Clause
"""Learning from images without labels: a trained network labels them where it is sure."""

import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from maskattn_kernels.segmentation.checkpoints import Checkpoint
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.images import ImageFiles
from maskattn_kernels.segmentation.data.sample import VOID, Sample, SegmentationDataset

__all__ = ["LabelledAndPseudo", "PseudoLabelled"]


class PseudoLabelled:
    """Images of a folder with the labels that a checkpoint gives them.

    A pixel whose class has a lower probability than ``confidence`` is void, so no loss counts it.

    Args:
        checkpoint: the teacher; its classes are those of the samples.
        folder: of images.
        confidence: 0 to 1.
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
        confidence: float,
        device: torch.device | str = "cpu",
    ) -> None:
        self._images = ImageFiles(folder, checkpoint.classes)
        self.classes = checkpoint.classes
        failed: list[str] = []
        results = checkpoint.segment_stream(
            (partial(self._images.__getitem__, index) for index in range(len(self._images))),
            device=device,
            confidence=confidence,
            failed=lambda error: failed.append(str(error)),
        )
        self._places: list[int] = []
        self._labels: list[_Packed] = []
        pixels = kept = 0
        for found in results:
            self._places.append(found.place)
            self._labels.append(_Packed(found.semantic, found.instance))
            pixels += found.semantic.size
            kept += int((found.semantic != VOID).sum())
        if not self._labels:
            raise DataError(f"{folder}: no image there can be read, such as {failed[0]}")
        self.kept = kept / pixels
        self.notes = (*self._images.notes, *(f"left out: {line}" for line in failed))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:
        sample = self._images[self._places[index]]
        semantic, instance = self._labels[index].unpacked(sample.image.shape[:2])
        return replace(sample, semantic=semantic, instance=instance)


class _Packed:
    """The labels of an image, small enough to keep those of thousands of photographs."""

    def __init__(self, semantic: np.ndarray, instance: np.ndarray) -> None:
        self._semantic = zlib.compress(semantic.astype(np.uint8).tobytes(), 1)
        self._instance = zlib.compress(instance.astype(np.int32).tobytes(), 1)

    def unpacked(self, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Classes and objects, (H,W) as they were."""
        semantic = np.frombuffer(zlib.decompress(self._semantic), dtype=np.uint8)
        instance = np.frombuffer(zlib.decompress(self._instance), dtype=np.int32)
        return semantic.reshape(shape), instance.reshape(shape)


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
