# SPDX-License-Identifier: BSD-3-Clause
"""Random parts of samples, changed at random, for training."""

from dataclasses import dataclass

import numpy as np

from maskattn_kernels.segmentation.data.frame import GREY, Frame, FrameKind, cut, frame_size
from maskattn_kernels.segmentation.data.sample import VOID, Sample

__all__ = ["Augmentation"]


@dataclass(frozen=True)
class Augmentation:
    """Random zoom, place, mirroring, brightness and contrast: cheap, and enough for few labels.

    Attributes:
        zoom: least and largest. The whole frame is scaled by it, and a part of it of the network's
            size is cut out; what lies outside of the frame is `VOID`.
        mirror: whether left and right may change places (not for digits: a mirrored 2 is not a 2).
        light: brightness and contrast change by up to this share.
    """

    zoom: tuple[float, float] = (0.8, 1.3)
    mirror: bool = True
    light: float = 0.25

    def __call__(
        self,
        sample: Sample,
        size: tuple[int, int],
        rng: np.random.Generator,
        kind: FrameKind = "fit",
    ) -> Frame:
        """A part of a sample; the same for the same state of ``rng``.

        Args:
            sample: of any size.
            size: height and width of the part.
            rng: for the draws.
            kind: of the whole frame, see `frame_size`.
        """
        frame = self._part(sample, size, rng, kind)
        mirrored = self.mirror and rng.random() < 0.5
        gain = 1 + self.light * (2 * rng.random() - 1)
        contrast = 1 + self.light * (2 * rng.random() - 1)
        level = float(frame.image.mean(dtype=np.float32))
        curve = gain * (level + contrast * (np.arange(256) - level))
        image = np.take(np.rint(np.clip(curve, 0, 255)).astype(np.uint8), frame.image)
        step = np.s_[:, ::-1] if mirrored else np.s_[:, :]
        return Frame(image[step], frame.semantic[step], frame.instance[step])

    def _part(
        self, sample: Sample, size: tuple[int, int], rng: np.random.Generator, kind: FrameKind
    ) -> Frame:
        zoom = self.zoom[0] * (self.zoom[1] / self.zoom[0]) ** float(rng.random())
        down, along = float(rng.random()), float(rng.random())
        height, width = sample.image.shape[:2]
        whole = frame_size(height, width, size, kind)
        top, bottom, rows = _side(height, zoom * whole[0], size[0], down)
        left, right, columns = _side(width, zoom * whole[1], size[1], along)
        seen = (rows.stop - rows.start, columns.stop - columns.start)
        part = cut(sample, (left, top, right, bottom), seen)
        if seen == size:
            return part
        frame = Frame(
            np.full((*size, 3), GREY, dtype=np.uint8),
            np.full(size, VOID, dtype=np.uint8),
            np.zeros(size, dtype=np.int32),
        )
        frame.image[rows, columns] = part.image
        frame.semantic[rows, columns] = part.semantic
        frame.instance[rows, columns] = part.instance
        return frame


def _side(source: int, scaled: float, target: int, place: float) -> tuple[float, float, slice]:
    """One side of a part: from where to where in the image, and in which pixels of the frame.

    Args:
        source: pixels of the image.
        scaled: of the image after scaling.
        target: of the frame.
        place: 0 to 1, from the first possible place to the last.
    """
    if scaled >= target:
        first = round(place * (scaled - target))  # a whole pixel: without zoom nothing is blurred
        start, length = first * source / scaled, target * source / scaled
        return min(start, source - length), min(start + length, source), slice(0, target)
    seen = min(max(1, round(scaled)), target)
    first = round(place * (target - seen))
    return 0.0, float(source), slice(first, first + seen)
