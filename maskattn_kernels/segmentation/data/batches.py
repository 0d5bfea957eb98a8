# SPDX-License-Identifier: BSD-3-Clause
"""Batches of any data set of the package: resized, augmented, in a repeatable order."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from maskattn_kernels.common.background import batched
from maskattn_kernels.segmentation.data.augmentation import Augmentation, chosen_augmentation
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.frame import (
    Frame,
    FrameKind,
    as_frame_kind,
    as_size,
    whole_frame,
)
from maskattn_kernels.segmentation.data.judge import differing
from maskattn_kernels.segmentation.data.label_counts import class_pixels, image_weights
from maskattn_kernels.segmentation.data.loading import Loader
from maskattn_kernels.segmentation.data.opening import open_dataset
from maskattn_kernels.segmentation.data.order import PADDING, Draw, RunOrder, ValidationOrder
from maskattn_kernels.segmentation.data.pasting import pasted
from maskattn_kernels.segmentation.data.sample import VOID, Classes, SegmentationDataset

__all__ = ["Batches"]


class Batches:
    """Loads a data set as batches of H x W images with labels.

    A batch is a dict: ``image`` uint8 (B,3,H,W); ``semantic`` int64 (B,H,W), class numbers or 255 =
    void; ``instance`` int64 (B,H,W), 0 = no object; ``name`` list of str; ``original_size`` int64
    (B,2), height and width; ``index`` int64 (B,), the sample's number in the set, -1 for an image
    of padding, whose labels are all void.

    Training batches have the size that is asked for. For validation images are whole, at the size
    that ``frame`` gives them; since these sizes differ, the loader gives lists of batches.

    Order and augmentation depend on (seed, epoch, index) alone, and with ``balance`` on the labels
    and on how often an image has come in its epoch: they are the same for any number of
    workers, after a resume at any batch, and over any number of processes for one global batch.

    Args:
        name: of the data set, see `open_dataset`.
        root: its folder; None for digit-scenes.
        size: of training images: one number for squares, or height and width.
        frame: what a whole image becomes: "fit" = scaled so that it lies within ``size``, its
            aspect kept; "own" = as it is; "squeeze" = scaled to exactly ``size``. A training image
            is a part of it at a random place; what lies outside of the image is void.
        batch_size: images per process.
        workers: processes that load; 0 = the training process itself.
        seed: of order, augmentation and of the choice under `limit`.
        limit: number of images to train with; a smaller limit takes some of those of a larger one.
        balance: whether images with rare classes come more often, see `image_weights`.
        augment: whether training images are zoomed, mirrored and lit at random; or how, and whether
            parts of others are pasted in, see `chosen_augmentation`.
        val_options: options for the validation set where they differ (``{"textures": "shifted"}``).
        options: for the data set, see `open_dataset`.

    Raises:
        DataError: data or options that cannot be used, when first needed.

    Example:
        >>> batches = Batches("digit-scenes", batch_size=4, count=8)
        >>> batch = next(iter(batches.train_loader(batches=1)))
        >>> batch["image"].shape, batch["semantic"].dtype, len(batches.classes)
        (torch.Size([4, 3, 128, 128]), torch.int64, 18)
    """

    def __init__(
        self,
        name: str = "digit-scenes",
        root: Path | None = None,
        size: int | tuple[int, int] = 128,
        frame: FrameKind = "fit",
        batch_size: int = 16,
        workers: int = 0,
        seed: int = 0,
        limit: int | None = None,
        balance: bool = False,
        augment: bool | Mapping[str, Any] = True,
        val_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        counts = {"batch_size": batch_size, "limit": limit, "workers": workers}
        for argument, value in counts.items():
            least = 0 if argument == "workers" else 1
            if value is not None and (not isinstance(value, int) or value < least):
                raise DataError(f"{argument}: expected a whole number from {least}, got {value!r}")
        self.dataset_name = name
        self.root = root
        self.size, self.frame = as_size(size), as_frame_kind(frame)
        self.batch_size = batch_size
        self.workers = workers
        self.seed = seed
        self.limit = limit
        self.balance = balance
        self.augment = augment
        self.options = {"train": options, "val": {**options, **(val_options or {})}}
        self._sets: dict[str, SegmentationDataset] = {}
        self._pixels: np.ndarray | None = None

    def dataset(self, split: str) -> SegmentationDataset:
        """The samples of a split at their own size; `index` of a batch counts in it.

        Raises:
            DataError: data that cannot be used.
        """
        if split not in self._sets:
            found = open_dataset(self.dataset_name, self.root, split, **self.options[split])
            self._sets[split] = found
            if len(self._sets) == 2:
                train, val = (self._sets[name].classes for name in ("train", "val"))
                for fault in differing(train, val):
                    raise DataError(f"{self.root}: {fault}")
        return self._sets[split]

    @property
    def classes(self) -> Classes:
        """The classes of the data set."""
        return self.dataset("train").classes

    def open(self) -> None:
        """Open both splits, so that bad data stops a run before it starts.

        Raises:
            DataError: data or an option that cannot be used.
        """
        self.augmentation()
        for split in self.options:
            self.dataset(split)

    def labelled(self) -> np.ndarray:
        """Ascending numbers of the training images in use: all, or `limit` of them."""
        size = len(self.dataset("train"))
        if self.limit is None or self.limit >= size:
            return np.arange(size)
        rng = np.random.Generator(np.random.PCG64(self.seed))
        return np.sort(rng.permutation(size)[: self.limit])

    def train_with(self, samples: SegmentationDataset) -> None:
        """Train with other samples of the same classes, all of them (self-training)."""
        self._sets["train"] = samples
        self.limit = self._pixels = None

    def class_pixels(self) -> np.ndarray:
        """`class_pixels` of the training images in use; they are read once.

        Raises:
            DataError: an image cannot be read.
        """
        if self._pixels is None:
            self._pixels = class_pixels(self.dataset("train"), self.labelled())
        return self._pixels

    def augmentation(self) -> Augmentation:
        """How training images are changed.

        Raises:
            DataError: ``augment`` asks for what there is not.
        """
        # Mirroring would change digits, and zooming in could cut off a legend.
        digits, legend = self.dataset_name == "digit-scenes", self.options["train"].get("legend")
        usual = Augmentation((0.8, 1.0 if legend else 1.3), mirror=not digits)
        return chosen_augmentation(self.augment, usual)

    def train_loader(
        self, batches: int, start: int = 0, rank: int = 0, world: int = 1
    ) -> DataLoader:
        """The batches of a whole run in the order of `RunOrder`, augmented if `augment` is set.

        Args:
            batches: of the run.
            start: the first one to give, where a run is resumed.
            rank, world: of this process, and how many share the batches.
        """
        chosen = self.labelled()
        items = _Items(self, "train", chosen, self.augmentation())
        weights = image_weights(self.class_pixels()) if self.balance else None
        share = (start, rank, world)
        order = RunOrder(len(chosen), self.batch_size, batches, self.seed, *share, weights)
        return Loader(items, self.workers, _collate, batch_sampler=order)

    def val_loader(self, rank: int = 0, world: int = 1) -> DataLoader:
        """Whole validation images of process ``rank`` of ``world``, by `ValidationOrder`.

        It gives lists of batches, each of images of one size and of no more pixels than a training
        batch, or of one image.
        """
        images = len(self.dataset("val"))
        return Loader(
            _Items(self, "val", np.arange(images), None),
            self.workers,
            partial(_by_size, most=self.batch_size * self.size[0] * self.size[1]),
            sampler=ValidationOrder(images, rank, world),
            batch_size=self.batch_size,
            persistent_workers=self.workers > 0,
        )


class _Items(Dataset):
    """Samples as the entries of a batch, by `Draw`."""

    def __init__(
        self, batches: Batches, split: str, chosen: np.ndarray, augmentation: Augmentation | None
    ) -> None:
        self.samples, self.chosen = batches.dataset(split), chosen
        self.size, self.kind, self.seed = batches.size, batches.frame, batches.seed
        self.augmentation = augmentation

    def __getitem__(self, draw: Draw) -> dict[str, Any]:
        index = int(self.chosen[max(draw.index, 0)])
        sample = self.samples[index]
        if self.augmentation is None:
            frame = whole_frame(sample, self.size, self.kind)
        else:
            key = (self.seed, draw.epoch, index, *([draw.again] if draw.again else []))
            rng = np.random.Generator(np.random.PCG64(key))
            frame = self.augmentation(sample, self.size, rng, self.kind)
            if rng.random() < self.augmentation.paste:
                other = self.samples[int(rng.choice(self.chosen))]
                part = self.augmentation(other, self.size, rng, self.kind)
                frame = pasted(frame, part, rng)
        if draw.index == PADDING:
            void = np.full_like(frame.semantic, VOID)
            frame = Frame(frame.image, void, np.zeros_like(frame.instance))
        return {
            "image": np.ascontiguousarray(frame.image.transpose(2, 0, 1)),
            "semantic": frame.semantic,
            "instance": frame.instance,
            "name": sample.name,
            "original_size": sample.image.shape[:2],
            "index": index if draw.index != PADDING else PADDING,
        }


def _by_size(items: Sequence[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """Batches of items of one size, of at most ``most`` pixels or of one item."""
    groups: dict[tuple[int, ...], list[dict[str, Any]]] = {}
    for item in items:
        groups.setdefault(item["semantic"].shape, []).append(item)
    return [
        _collate(part)
        for (height, width), group in groups.items()
        for part in batched(group, max(1, most // (height * width)))
    ]


def _collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    batch: dict[str, Any] = {"name": [item["name"] for item in items]}
    for key in ("image", "semantic", "instance", "original_size", "index"):
        stacked: Tensor = torch.from_numpy(np.stack([item[key] for item in items]))
        batch[key] = stacked if key == "image" else stacked.long()
    return batch
