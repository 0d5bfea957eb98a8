# SPDX-License-Identifier: BSD-3-Clause
"""`Segmentation`: what a network says about one image."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from PIL import Image

from maskattn_kernels.segmentation.data.drawing import overlay
from maskattn_kernels.segmentation.data.frame import Frame
from maskattn_kernels.segmentation.data.sample import VOID, Classes, Sample

__all__ = ["Attended", "Measured", "Segmentation", "SegmentedObject", "Work"]

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
        entropy: float32 (h,w), of each pixel's class probabilities, in nats: 0 = sure, the
            logarithm of the number of classes = all of them are equally probable.
        statistics: by their names in `STATISTICS`, see `Measures`; "entropy" is the mean over all
            pixels.
        pooled: float32 (F,), the mean over all places of the deepest feature map: images with alike
            content are near each other.
    """

    entropy: np.ndarray
    statistics: dict[str, float]
    pooled: np.ndarray

    @classmethod
    def empty(cls) -> "Measured":
        """What there is where nothing was measured."""
        return cls(np.empty((0, 0), np.float32), {}, np.empty(0, np.float32))


class Work(NamedTuple):
    """What an image took.

    Attributes:
        seconds: of computing, without reading; its share, where images are computed together.
        tiles: that went through the network; 0 = none, but the image as a whole.
        of: all tiles of the image.
    """

    seconds: float = 0.0
    tiles: int = 0
    of: int = 0


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
        frame: the sample as the network saw it, of h x w pixels; in tiles, the whole of it.
        frame_semantic: uint8 (h,w), class numbers, as the network gave them.
        frame_instance: int32 (h,w), 0 = no object.
        semantic: uint8 (H,W): class numbers, which are places in ``classes.names``, or `VOID`
            (255). ``classes.to_ids(semantic)`` has the ids of the data set's own files.
        instance: int32 (H,W): 0 = no object, else the `number` of one of ``objects``.
        labels: uint8 (K,), the class of object 1 to K, the last one; `VOID` for numbers without a
            pixel.
        scores: float32 (K,), 0 to 1, how sure it is.
        attended: where each scale attends, by its name; empty if that was not asked for.
        measured: how sure the network is, and what the image is like; empty if that was not asked
            for.
        work: what the image took.
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
    frame: Frame
    frame_semantic: np.ndarray
    frame_instance: np.ndarray
    semantic: np.ndarray
    instance: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    attended: Mapping[str, Attended] = field(default_factory=dict)
    measured: Measured = field(default_factory=Measured.empty)
    work: Work = field(default_factory=Work)
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
