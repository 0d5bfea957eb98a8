# SPDX-License-Identifier: BSD-3-Clause
"""The one way from images to what a network says about them, at the images' own size.

Threads read the images of the next batches while the network computes. Whatever segments images
goes this way: `Checkpoint.segment`, ``maskattn predict``, ``maskattn eval`` and self-training.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from typing_extensions import TypedDict  # comes with torch; Python's own is of 3.11

from maskattn_kernels.common.background import ahead, map_ahead
from maskattn_kernels.common.command_line import torch_device
from maskattn_kernels.models.selector_dial import Keep
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.frame import FrameKind
from maskattn_kernels.segmentation.data.inputs import AnyImage
from maskattn_kernels.segmentation.data.sample import VOID, Classes
from maskattn_kernels.segmentation.model.grouping import Panoptic, group
from maskattn_kernels.segmentation.model.measures import STATISTICS, Measures, measure
from maskattn_kernels.segmentation.model.mirrored import with_tta
from maskattn_kernels.segmentation.model.network import Outputs, SegmentationNetwork
from maskattn_kernels.segmentation.model.own_size import at_size
from maskattn_kernels.segmentation.model.prepared import (
    images_together,
    inference_dtype,
    prepared,
)
from maskattn_kernels.segmentation.reading import Read, Reader, alike
from maskattn_kernels.segmentation.results import Attended, Measured, Segmentation, Work
from maskattn_kernels.segmentation.runtimes import Exported
from maskattn_kernels.segmentation.tiling import Tiling, through_tiles

__all__ = ["Pipeline", "SegmentOptions", "StreamOptions"]


class _Computed(NamedTuple):
    """Images whose frames have one shape, and what the network says about them, on its device.

    Attributes:
        images: of a batch.
        attended: where each scale attends, for images that were seen whole, if it is asked for.
        found: at the size of the frames.
        own: classes and objects of each image at its own size.
        measures: if they are asked for.
        work: of each image.
    """

    images: list[Read]
    attended: list[dict[str, Attended]]
    found: Panoptic
    own: list[tuple[Tensor, Tensor]]
    measures: Measures | None
    work: Work


class _Options(TypedDict, total=False):
    batch_size: int
    device: str | torch.device
    confidence: float
    min_score: float
    precision: str
    compile: bool
    measured: bool
    tta: str | None
    tiles: int | tuple[int, int] | None
    overlap: float
    hybrid: float | None
    keep: Keep | None
    selector: str | None


class StreamOptions(_Options, total=False):
    """What `Checkpoint.segment_stream` takes beside images, see `Checkpoint.segment`.

    And ``exported``, see `Pipeline`.
    """

    exported: Exported | None


class SegmentOptions(_Options, total=False):
    """What `Checkpoint.segment` takes beside images."""

    attended: bool


class Pipeline:
    """A network, ready to segment images.

    Args:
        network: it is moved to the device, and set to eval mode.
        classes: of the network.
        size: height and width that the network is trained on.
        kind: of the frames that whole images become, see `frame_size`.
        batch_size: images that go through the network together. Only frames of one shape do,
            which wait for each other; frames larger than ``size`` are fewer.
        device: to compute on; "auto" = a GPU if there is one.
        confidence: 0 to 1; pixels whose class has a lower probability become `VOID`, and belong to
            no object.
        min_score: 0 to 1; objects with a lower score are left out, their pixels keep the class.
        attended: places of the images, from 0, that also get where each scale attends.
        failed: called with the error of each image that cannot be read, in a thread; that image is
            left out. None = the error is raised, and ends the stream.
        precision: "float32", "bfloat16", or "auto" = bfloat16 where `fast_bfloat16` is True.
        compile: the network by torch.compile.
        measured: whether to give `Segmentation.measured`.
        tta: "flip" = see `Mirrored`; None = the images as they are.
        tiling: how images are cut into tiles; None = each goes through the network as a whole.
        exported: a file made of the network, which runs in its place; whole images then become
            frames of its size. None = the network itself.

    What runs is a copy of the network made by `prepare_for_inference`. On a CPU, a batch goes
    through it in parts of as many images as `images_together` says.

    Raises:
        ValueError: an argument is outside of its range, or the device cannot be used.
    """

    def __init__(
        self,
        network: SegmentationNetwork,
        classes: Classes,
        size: tuple[int, int],
        kind: FrameKind,
        *,
        batch_size: int = 16,
        device: str | torch.device = "auto",
        confidence: float = 0.0,
        min_score: float = 0.0,
        attended: Collection[int] = (),
        failed: Callable[[DataError], object] | None = None,
        precision: str = "float32",
        compile: bool = False,
        measured: bool = False,
        tta: str | None = None,
        tiling: Tiling | None = None,
        exported: Exported | None = None,
    ) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size: expected a whole number from 1, got {batch_size!r}")
        for name, share in (("confidence", confidence), ("min_score", min_score)):
            if not isinstance(share, int | float | np.floating) or not 0 <= share <= 1:
                raise ValueError(f"{name}: expected a number from 0 to 1, got {share!r}")
        self.device = torch_device(device)
        self.dtype = inference_dtype(precision, self.device)
        network.to(self.device).eval()
        ready = prepared(network, self.dtype, compile) if exported is None else exported
        size = size if exported is None else exported.size
        self.network = with_tta(ready, tta)
        self.trained = network
        self.classes, self.size = classes, size
        self.batch_size, self.tiling = batch_size, tiling
        self.reader = Reader(size, kind, len(classes), tiling, failed)
        self.confidence, self.attended = confidence, attended
        self.measured, self.min_score = measured, min_score

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

        def compute(batch: list[Read]) -> list[_Computed]:
            if streams > 1:
                torch.set_num_threads(threads // streams)  # of this thread
            return self._compute(batch)

        batches = ahead(alike(self.reader.stream(images), self.batch_size, self._together))
        early: dict[int, Segmentation] = {}
        count = 0
        try:
            for parts in map_ahead(compute, batches, streams):
                for computed in parts:
                    early.update(self._results(computed))
                while count in early:
                    yield early.pop(count)
                    count += 1
        finally:
            torch.set_num_threads(threads)  # for threads that begin later

    def batch(self, images: Iterable[AnyImage]) -> list[Segmentation]:
        """Segment a few images in this thread: the shortest way to the results."""
        read = (self.reader.read(*numbered) for numbered in enumerate(images))
        results: dict[int, Segmentation] = {}
        for batch in alike(read, self.batch_size, self._together):
            for computed in self._compute(batch):
                results.update(self._results(computed))
        return [results[order] for order in sorted(results)]

    def _together(self, shape: tuple[int, int]) -> int:
        return images_together(self.batch_size, self.trained, shape, self.dtype, self.size)

    def _pixels(self, images: list[np.ndarray]) -> Tensor:
        """Images (h,w,3) of one shape as (B,3,h,w), on the device."""
        stacked = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
        return stacked.contiguous().to(self.device)

    @torch.inference_mode()
    def _compute(self, images: list[Read]) -> list[_Computed]:
        start, tiling = time.perf_counter(), self.tiling
        if tiling is None:
            return [self._found(images, *self._seen(images), start)]
        whole: Outputs | None = None
        maps: list[dict[str, Attended]] = [{} for _ in images]
        if tiling.share is not None:
            whole, maps = self._seen(images)
        spent, computed = (time.perf_counter() - start) / len(images), []
        for i, read in enumerate(images):
            start = time.perf_counter() - spent
            outputs, *tiles = self._refined(
                tiling, read, None if whole is None else _only(whole, i)
            )
            computed.append(self._found([read], outputs, [maps[i]], start, *tiles))
        return computed

    def _seen(self, images: list[Read]) -> tuple[Outputs, list[dict[str, Attended]]]:
        """The outputs for whole images, and where each scale attends in those that ask for it."""
        outputs = self.network(self._pixels([read.seen for read in images]))
        maps: list[dict[str, Attended]] = [{} for _ in images]
        shown = [i for i, read in enumerate(images) if read.place in self.attended]
        for i, attended in zip(shown, _attended(outputs, shown), strict=True):
            maps[i] = attended
        return outputs, maps

    def _refined(
        self, tiling: Tiling, read: Read, whole: Outputs | None
    ) -> tuple[Outputs, int, int]:
        """The outputs for an image by its tiles, how many these were, and of how many."""
        size = read.sample.image.shape[:2]
        plan = tiling.plan(read.sample.name, size, len(self.classes))
        tiles = tiling.chosen(plan, whole)
        pixels = self._pixels([read.sample.image])[0]
        together = self._together((plan.rows.length, plan.columns.length))
        outputs = through_tiles(self.network, pixels, plan, tiles, together, whole)
        return outputs, len(tiles), plan.count

    def _found(
        self,
        images: list[Read],
        outputs: Outputs,
        attended: list[dict[str, Attended]],
        start: float,
        tiles: int = 0,
        of: int = 0,
    ) -> _Computed:
        """What the outputs for images of one shape say, at their own sizes."""
        things = self.classes.things if outputs.have_objects else ()
        found = group(outputs, things)
        own = [
            at_size(
                outputs.semantic[i],
                Panoptic(*(part[i : i + 1] for part in found)),
                read.sample.image.shape[:2],
                things,
                self.confidence,
            )
            for i, read in enumerate(images)
        ]
        measures = None
        if self.measured:
            measures = measure(self._pixels([read.frame.image for read in images]), outputs)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        seconds = (time.perf_counter() - start) / len(images)
        return _Computed(images, attended, found, own, measures, Work(seconds, tiles, of))

    @torch.inference_mode()
    def _results(self, computed: _Computed) -> Iterator[tuple[int, Segmentation]]:
        images, maps, found, own, measures, work = computed
        # Copies of small types: a result that is kept does not keep its whole batch.
        kinds = (torch.uint8, torch.int32, torch.uint8, torch.float32)
        parts = [part.to(kind).cpu().numpy() for part, kind in zip(found, kinds, strict=True)]
        measured = [Measured.empty()] * len(images) if measures is None else _measured(measures)
        for i, read in enumerate(images):
            semantic, instance, labels, scores = (part[i].copy() for part in parts)
            numbers = np.arange(len(labels) + 1, dtype=np.int32)
            numbers[1:][scores < self.min_score] = 0
            labels[numbers[1:] == 0] = VOID
            # Of an image alone, not of those that went through the network beside it.
            objects = int(np.flatnonzero(labels != VOID).max(initial=-1)) + 1
            yield (
                read.order,
                Segmentation(
                    sample=read.sample,
                    classes=self.classes,
                    frame=read.frame,
                    frame_semantic=semantic,
                    frame_instance=numbers[instance],
                    semantic=own[i][0].cpu().numpy(),
                    instance=numbers[own[i][1].cpu().numpy()],
                    labels=labels[:objects],
                    scores=scores[:objects],
                    attended=maps[i],
                    measured=measured[i],
                    work=work,
                    place=read.place,
                ),
            )


def _only(outputs: Outputs, place: int) -> Outputs:
    """The outputs for one image of a batch."""
    one = slice(place, place + 1)
    rest = (outputs.center, outputs.offset, outputs.pooled, outputs.distance)
    center, offset, pooled, distance = (None if part is None else part[one] for part in rest)
    return Outputs(outputs.semantic[one], center, offset, None, {}, pooled, distance=distance)


def _attended(outputs: Outputs, places: list[int]) -> list[dict[str, Attended]]:
    """Where each scale attends in the images at ``places`` of a batch."""
    maps: list[dict[str, Attended]] = [{} for _ in places]
    for name, selection in outputs.selections.items() if places else ():
        masks = selection.mask.expand(len(outputs.semantic), -1, -1)[places].cpu().numpy()
        scores = None if selection.score is None else selection.score[places].float().cpu().numpy()
        for i, attended in enumerate(maps):
            attended[name] = Attended(masks[i], None if scores is None else scores[i])
    return maps


def _measured(measures: Measures) -> list[Measured]:
    """The measures of each image of a batch; a result that is kept does not keep its batch."""
    entropy, statistics, pooled = (part.cpu().numpy() for part in measures)
    return [
        Measured(e.copy(), dict(zip(STATISTICS, s, strict=True)), p.copy())
        for e, s, p in zip(entropy, statistics.tolist(), pooled, strict=True)
    ]
