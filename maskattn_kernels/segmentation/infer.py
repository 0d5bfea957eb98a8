# SPDX-License-Identifier: BSD-3-Clause
"""The one way from images to what a network says about them, at the images' own size.

Threads read the images of the next batches while the network computes. Whatever segments images
goes this way: `Checkpoint.segment`, ``maskattn predict``, ``maskattn eval`` and self-training.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskattn_kernels.common.background import ahead, batched, map_ahead
from maskattn_kernels.common.command_line import torch_device
from maskattn_kernels.segmentation.data.augmentation import Square, fit
from maskattn_kernels.segmentation.data.drawing import overlay
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.inputs import AnyImage, as_sample
from maskattn_kernels.segmentation.data.sample import VOID, Classes, Sample
from maskattn_kernels.segmentation.model.grouping import Panoptic, group
from maskattn_kernels.segmentation.model.label_sizes import resize_labels
from maskattn_kernels.segmentation.model.measures import STATISTICS, Measures, measure
from maskattn_kernels.segmentation.model.mirrored import with_tta
from maskattn_kernels.segmentation.model.network import Outputs, SegmentationNetwork
from maskattn_kernels.segmentation.model.prepared import (
    images_together,
    inference_dtype,
    prepared,
)

__all__ = ["Attended", "Measured", "Pipeline", "Segmentation", "SegmentedObject"]

_SHOWN = 5  # classes and objects in a repr


class Attended(NamedTuple):
    """Where one scale attends.

    Attributes:
        mask: bool (h,w), True = takes part in attention.
        score: float (h,w), how much its head wants each place; None where a mask has no scores.
    """

    mask: np.ndarray
    score: np.ndarray | None = None


class Measured(NamedTuple):
    """How sure the network is of an image, and what the image is like; no labels are needed.

    Attributes:
        entropy: float32 (S,S), of each pixel's class probabilities, in nats: 0 = sure, the
            logarithm of the number of classes = all of them are equally probable.
        statistics: by their names in `STATISTICS`, see `Measures`; "entropy" is the mean over all
            pixels.
        pooled: float32 (F,), the mean over all places of the deepest feature map: images with alike
            content are near each other.
    """

    entropy: np.ndarray
    statistics: dict[str, float]
    pooled: np.ndarray


def _not_measured() -> Measured:
    return Measured(np.empty((0, 0), np.float32), {}, np.empty(0, np.float32))


class SegmentedObject(NamedTuple):
    """One object of an image.

    Attributes:
        number: its value in `Segmentation.instance`, from 1.
        label: the number of its class.
        name: of its class.
        score: 0 to 1, how sure it is.
        area: its pixels, at the image's own size.
    """

    number: int
    label: int
    name: str
    score: float
    area: int


@dataclass(frozen=True, eq=False, repr=False)
class Segmentation:
    """What a network says about one image of H x W pixels.

    Attributes:
        sample: the image as it was read, with its labels if it has some.
        classes: that the network tells apart.
        square: the sample as the network saw it, at S x S pixels.
        square_semantic: uint8 (S,S), class numbers or `VOID`, as the network gave them.
        square_instance: int32 (S,S), 0 = no object.
        labels: uint8 (K,), the class of object 1 to K, the last one; `VOID` for numbers without a
            pixel.
        scores: float32 (K,), 0 to 1, how sure it is.
        attended: where each scale attends, by its name; empty if that was not asked for.
        measured: how sure the network is, and what the image is like; empty if that was not asked
            for.
        place: the image's place among those that were given, from 0.

    Example:
        >>> import numpy as np
        >>> from maskattn_kernels.segmentation import Checkpoint, Classes, SegmentationNetwork
        >>> classes = Classes(("sky", "sea"), (False, False), ((0, 0, 255), (0, 90, 90)), (0, 1))
        >>> network = SegmentationNetwork(2, task="semantic", width=4, depth=2)
        >>> found = Checkpoint(network, classes, size=32).segment(np.zeros((40, 60, 3), np.uint8))
        >>> found.name, found.semantic.shape, found.objects, found.overlay().size
        ('image-000000', (40, 60), (), (60, 40))
    """

    sample: Sample
    classes: Classes
    square: Square
    square_semantic: np.ndarray
    square_instance: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    attended: Mapping[str, Attended] = field(default_factory=dict)
    measured: Measured = field(default_factory=_not_measured)
    place: int = 0

    @property
    def name(self) -> str:
        """The file's name without its ending, or "image-" and the image's number."""
        return self.sample.name

    @property
    def image(self) -> np.ndarray:
        """uint8 (H,W,3), RGB, upright."""
        return self.sample.image

    @cached_property
    def semantic(self) -> np.ndarray:
        """uint8 (H,W): class numbers, which are places in ``classes.names``, or `VOID` (255).

        ``classes.to_ids(semantic)`` has the ids of the data set's own files instead.
        """
        return _resized(self.square_semantic, self.image)

    @cached_property
    def instance(self) -> np.ndarray:
        """int32 (H,W): 0 = no object, else the `number` of one of ``objects``."""
        return _resized(self.square_instance, self.image)

    @cached_property
    def objects(self) -> tuple[SegmentedObject, ...]:
        """The objects that can be seen at the image's own size, by number.

        The mask of an object is ``instance == object.number``.
        """
        areas = np.bincount(self.instance.ravel(), minlength=len(self.labels) + 1)
        return tuple(
            SegmentedObject(
                number=int(number),
                label=int(self.labels[number - 1]),
                name=self.classes.names[self.labels[number - 1]],
                score=float(self.scores[number - 1]),
                area=int(areas[number]),
            )
            for number in np.flatnonzero(areas[1:]) + 1
        )

    def overlay(self) -> Image.Image:
        """The image in the colours of the classes, with a line around every object."""
        return Image.fromarray(overlay(self.image, self.semantic, self.instance, self.classes))

    def __repr__(self) -> str:
        counts = np.bincount(self.semantic.ravel(), minlength=VOID + 1)
        names = {**dict(enumerate(self.classes.names)), VOID: "void"}
        order = [k for k in np.argsort(-counts, kind="stable") if counts[k]]
        shares = [f"{names[k]} {counts[k] / self.semantic.size:.0%}" for k in order]
        best = sorted(self.objects, key=lambda found: -found.score)
        scores = [f"{found.name} {found.score:.2f}" for found in best]
        height, width = self.semantic.shape
        return (
            f"Segmentation({self.name!r}, {height} x {width}, {_first(shares)}; "
            f"{len(best)} objects{': ' if best else ''}{_first(scores)})"
        )


def _first(words: list[str]) -> str:
    return ", ".join([*words[:_SHOWN], *([".."] if len(words) > _SHOWN else [])])


def _resized(labels: np.ndarray, image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    if labels.shape == (height, width):
        return labels
    return resize_labels(torch.from_numpy(labels)[None], (height, width))[0].numpy()


_Read = tuple[int, Sample, Square, Tensor]


class _Computed(NamedTuple):
    """A batch with what the network says about it."""

    batch: list[_Read]
    outputs: Outputs
    found: Panoptic
    measures: Measures | None


class Pipeline:
    """A network, ready to segment images.

    Args:
        network: it is moved to the device, and set to eval mode.
        classes: of the network.
        size: S, the side of the squares that images are resized to.
        batch_size: images that go through the network together.
        device: to compute on; "auto" = a GPU if there is one.
        confidence: 0 to 1; pixels whose class has a lower probability become `VOID`, and belong to
            no object.
        attended: places of the images, from 0, that also get where each scale attends.
        failed: called with the error of each image that cannot be read, in a thread; that image is
            left out. None = the error is raised, and ends the stream.
        precision: "float32", "bfloat16", or "auto" = bfloat16 where `fast_bfloat16` is True.
        compile: the network by torch.compile.
        measured: whether to give `Segmentation.measured`.
        tta: "flip" = see `Mirrored`; None = the images as they are.

    What runs is a copy of the network made by `prepare_for_inference`. On a CPU, a batch goes
    through it in parts of as many images as `images_together` says.

    Raises:
        ValueError: an argument is outside of its range, or the device cannot be used.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        classes: Classes,
        size: int,
        *,
        batch_size: int = 16,
        device: str | torch.device = "auto",
        confidence: float = 0.0,
        attended: Collection[int] = (),
        failed: Callable[[DataError], object] | None = None,
        precision: str = "float32",
        compile: bool = False,
        measured: bool = False,
        tta: str | None = None,
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size: expected a whole number from 1, got {batch_size!r}")
        if not isinstance(confidence, int | float | np.floating) or not 0 <= confidence <= 1:
            raise ValueError(f"confidence: expected a number from 0 to 1, got {confidence!r}")
        self.device = torch_device(device)
        dtype = inference_dtype(precision, self.device)
        ready = prepared(network.to(self.device).eval(), dtype, compile)
        self.network = with_tta(ready, tta)
        self.classes, self.size = classes, size
        self.batch_size = images_together(batch_size, network, size, dtype)
        self.confidence, self.attended, self.failed = confidence, attended, failed
        self.measured = measured

    def stream(self, images: Iterable[AnyImage]) -> Iterator[Segmentation]:
        """Segment any number of images one after another, in bounded memory.

        Args:
            images: see `as_sample`; they are read in threads, some batches ahead.

        Raises:
            TypeError, DataError: an image cannot be used, after the results of earlier batches;
                with ``failed``, DataError does not occur.
        """
        # On a CPU two batches at a time with half of the threads each: what reads and writes
        # beside them takes a core from one of them, and all threads of a single one would wait.
        threads = torch.get_num_threads()
        streams = 2 if threads > 1 and self.device.type == "cpu" else 1

        def compute(batch: list[_Read]) -> _Computed:
            if streams > 1:
                torch.set_num_threads(threads // streams)  # of this thread
            return self._compute(batch)

        batches = ahead(batched(self._readable(images), self.batch_size))
        try:
            for computed in map_ahead(compute, batches, streams):
                yield from self._results(computed)
        finally:
            torch.set_num_threads(threads)  # for threads that begin later

    def batch(self, images: Iterable[AnyImage]) -> list[Segmentation]:
        """Segment a few images in this thread: the shortest way to the results."""
        read = [self._read(pair) for pair in enumerate(images)]
        parts = batched(read, self.batch_size)
        return [found for part in parts for found in self._results(self._compute(part))]

    def _readable(self, images: Iterable[AnyImage]) -> Iterator[_Read]:
        for read in map_ahead(self._read_or_error, enumerate(images)):
            if not isinstance(read, DataError):
                yield read
            elif self.failed is None:
                raise read
            else:
                self.failed(read)

    def _read_or_error(self, numbered: tuple[int, AnyImage]) -> _Read | DataError:
        try:
            return self._read(numbered)
        except DataError as error:
            return error

    def _read(self, numbered: tuple[int, AnyImage]) -> _Read:
        number, image = numbered
        sample = as_sample(image, number)
        square = fit(sample, self.size)
        return number, sample, square, torch.from_numpy(square.image.transpose(2, 0, 1).copy())

    @torch.inference_mode()
    def _compute(self, batch: list[_Read]) -> _Computed:
        images = torch.stack([pixels for *_, pixels in batch]).to(self.device)
        outputs = self.network(images)
        found = group(outputs, self.classes.things)
        if self.confidence > 0:
            unsure = outputs.semantic.float().softmax(1).amax(1) < self.confidence
            found = found._replace(
                semantic=found.semantic.masked_fill(unsure, VOID),
                instance=found.instance.masked_fill(unsure, 0),
            )
        return _Computed(batch, outputs, found, measure(images, outputs) if self.measured else None)

    @torch.inference_mode()
    def _results(self, computed: _Computed) -> list[Segmentation]:
        batch, outputs, found, measures = computed
        # Copies of small types: a result that is kept does not keep its whole batch.
        kinds = (torch.uint8, torch.int32, torch.uint8, torch.float32)
        parts = [part.to(kind).cpu().numpy() for part, kind in zip(found, kinds, strict=True)]
        shown = [i for i, (number, *_) in enumerate(batch) if number in self.attended]
        maps = _attended(outputs, shown)
        measured = [_not_measured()] * len(batch) if measures is None else _measured(measures)
        results = []
        for i, (place, sample, square, _) in enumerate(batch):
            semantic, instance, labels, scores = (part[i].copy() for part in parts)
            # Of an image alone, not of those that went through the network beside it.
            objects = int(np.flatnonzero(labels != VOID).max(initial=-1)) + 1
            labels, scores = labels[:objects], scores[:objects]
            own = (semantic, instance, labels, scores, maps.get(i, {}), measured[i], place)
            results.append(Segmentation(sample, self.classes, square, *own))
        return results


def _attended(outputs: Outputs, places: list[int]) -> dict[int, dict[str, Attended]]:
    """Where each scale attends in the images at ``places`` of a batch."""
    maps: dict[int, dict[str, Attended]] = {place: {} for place in places}
    for name, selection in outputs.selections.items() if places else ():
        masks = selection.mask.expand(len(outputs.semantic), -1, -1)[places].cpu().numpy()
        scores = None if selection.score is None else selection.score[places].float().cpu().numpy()
        for i, place in enumerate(places):
            maps[place][name] = Attended(masks[i], None if scores is None else scores[i])
    return maps


def _measured(measures: Measures) -> list[Measured]:
    """The measures of each image of a batch; a result that is kept does not keep its batch."""
    entropy, statistics, pooled = (part.cpu().numpy() for part in measures)
    return [
        Measured(e.copy(), dict(zip(STATISTICS, s, strict=True)), p.copy())
        for e, s, p in zip(entropy, statistics.tolist(), pooled, strict=True)
    ]
