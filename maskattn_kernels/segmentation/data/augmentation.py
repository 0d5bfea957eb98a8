# SPDX-License-Identifier: BSD-3-Clause
"""Random parts of samples, changed at random, for training."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from maskattn_kernels.segmentation.data.colors import Colors
from maskattn_kernels.segmentation.data.errors import DataError, shown
from maskattn_kernels.segmentation.data.frame import GREY, Frame, FrameKind, cut, frame_size
from maskattn_kernels.segmentation.data.sample import VOID, Sample

__all__ = ["Augmentation", "chosen_augmentation"]

#: Highest values of the options that are numbers from 0.
HIGHEST = {
    "light": 1.0,
    "gamma": 3.0,
    "saturation": 1.0,
    "hue": 0.5,
    "blur": 20.0,
    "noise": 255.0,
    "paste": 1.0,
}


@dataclass(frozen=True)
class Augmentation:
    """Random zoom, place, mirroring and colours.

    Attributes:
        zoom: least and largest. The whole frame is scaled by it, and a part of it of the network's
            size is cut out; what lies outside of the frame is `VOID`.
        mirror: whether left and right may change places (not for digits: a mirrored 2 is not a 2).
        colors: how far colours may change.
        paste: how often half of what another image shows is pasted in, see `pasted`; 0 to 1.
    """

    zoom: tuple[float, float] = (0.8, 1.3)
    mirror: bool = True
    colors: Colors = field(default_factory=Colors)
    paste: float = 0.0

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
        image = self.colors(frame.image, rng)
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


def chosen_augmentation(asked: bool | Mapping[str, Any], usual: Augmentation) -> Augmentation:
    """The augmentation that is asked for.

    Args:
        asked: True = the usual one, False = random places only, or what differs from the usual one:
            ``zoom``, ``mirror``, ``paste`` and the attributes of `Colors` by name.
        usual: for the data set.

    Raises:
        DataError: another option, or a value out of its range.

    Example:
        >>> chosen_augmentation({"hue": 0.1, "zoom": [0.5, 2]}, Augmentation()).zoom
        (0.5, 2.0)
    """
    if asked is True:
        return usual
    if asked is False:
        return Augmentation((1.0, 1.0), mirror=False, colors=Colors(light=0.0))
    known = ("zoom", "mirror", *(part.name for part in fields(Colors)), "paste")
    unknown = [name for name in asked if name not in known]
    if unknown:
        raise DataError(f"augment: unknown option {unknown[0]!r}; known: {', '.join(known)}")
    numbers = {name: _number(name, asked[name]) for name in HIGHEST if name in asked}
    paste = numbers.pop("paste", usual.paste)
    mirror = asked.get("mirror", usual.mirror)
    if not isinstance(mirror, bool):
        raise DataError(f"augment: expected true or false for mirror, got {shown(mirror)}")
    zoom = _zoom(asked["zoom"]) if "zoom" in asked else usual.zoom
    return Augmentation(zoom, mirror, replace(usual.colors, **numbers), paste)


def _number(name: str, value: Any) -> float:
    if not _is_number(value) or not 0 <= value <= HIGHEST[name]:
        wanted = f"a number from 0 to {HIGHEST[name]:g}"
        raise DataError(f"augment: expected {wanted} for {name}, got {shown(value)}")
    return float(value)


def _zoom(value: Any) -> tuple[float, float]:
    pair = value if isinstance(value, list | tuple) and len(value) == 2 else ()
    if not pair or not all(map(_is_number, pair)) or not 0.1 <= pair[0] <= pair[1] <= 10:
        wanted = "the least and the largest, from 0.1 to 10,"
        raise DataError(f"augment: expected {wanted} for zoom, got {shown(value)}")
    return float(pair[0]), float(pair[1])


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
