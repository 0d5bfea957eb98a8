# SPDX-License-Identifier: BSD-3-Clause
"""Learning from images without labels: a trained network labels them where it is sure."""

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
from maskattn_kernels.segmentation.model.label_sizes import resize_labels

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
        self._places, labels = [], []
        for found in results:
            self._places.append(found.place)
            # Four bytes a pixel at the network's size: small enough to keep.
            labels.append(np.stack([found.square_semantic, found.square_instance]).astype(np.int16))
        if not labels:
            raise DataError(f"{folder}: no image there can be read, such as {failed[0]}")
        self.labels = torch.from_numpy(np.stack(labels))
        self.notes = (*self._images.notes, *(f"left out: {line}" for line in failed))

    @property
    def kept(self) -> float:
        """The fraction of pixels with a label."""
        return float((self.labels[:, 0] != VOID).float().mean())

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Sample:
        sample = self._images[self._places[index]]
        height, width = sample.image.shape[:2]
        semantic, instance = resize_labels(self.labels[index], (height, width)).numpy()
        return replace(
            sample, semantic=semantic.astype(np.uint8), instance=instance.astype(np.int32)
        )


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
