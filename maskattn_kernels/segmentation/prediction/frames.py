# SPDX-License-Identifier: BSD-3-Clause
"""Images to predict, one after another: a file, a folder, frames of a video or of a camera."""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import numpy as np

from maskattn_kernels.common.text import first_line
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.files import has_images, image_files, passed_over
from maskattn_kernels.segmentation.data.images import (
    count_frames,
    read_frames,
    read_image,
)
from maskattn_kernels.segmentation.data.sample import Sample

__all__ = ["Frames", "frames"]

TOLERANCE = 0.01  # of the frames that a video declares: some formats only estimate them
VIDEO_ENDINGS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


Read: TypeAlias = Callable[[], Sample]
"""Gives an image whose name is unique in its source; it may be called in any thread."""


@dataclass
class Frames:
    """The images of a source, as functions that read them; to be iterated once.

    Attributes:
        reads: the functions.
        count: how many there are; None where only the end tells.
        notes: lines on what is passed over or missing; complete after the last image.
    """

    reads: Iterable[Read]
    count: int | None = None
    notes: list[str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Read]:
        return iter(self.reads)


def frames(source: str | PathLike[str], *, recursive: bool = False) -> Frames:
    """All images of a source, as functions that read them.

    Args:
        source: an image file, also one of many frames (an animation, a TIFF of many pages); a
            folder of images, each of which is one image; a video (needs OpenCV or imageio with a
            plugin for videos); a number: that camera (needs OpenCV), whose frames do not end. A
            file or folder whose name is a number comes before the camera.
        recursive: also the images in folders of the folder; their names begin with the folder's.

    Raises:
        DataError: nothing there, an ending that is not known, or a package is missing.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from PIL import Image
        >>> from maskattn_kernels.segmentation.prediction.frames import frames
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name in ("b.png", "a.png"):
        ...     Image.new("RGB", (8, 6)).save(folder / name)
        >>> samples = [read() for read in frames(folder)]
        >>> [(sample.name, sample.image.shape) for sample in samples]
        [('a', (6, 8, 3)), ('b', (6, 8, 3))]
    """
    source = fspath(source)
    path = Path(source)
    if path.is_dir():
        places = [path, *_folders_below(path)] if recursive else [path]
        files, notes = _files(path, places)
        reads = [partial(_file_sample, name, file) for name, file in files.items()]
        return Frames(reads, len(reads), notes)
    if source.isascii() and source.isdigit() and not path.exists():
        camera = _opencv(f"camera {source}")
        return Frames(_with_opencv(camera, int(source), f"camera{source}", []))
    if not path.is_file():
        raise DataError(f"{source}: no such file or folder")
    if path.suffix.lower() in VIDEO_ENDINGS:
        return _video(path)
    return _file(path)


def _folders_below(folder: Path) -> Iterator[Path]:
    for where, names, _ in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith("."))
        yield from (Path(where) / name for name in names)


def _files(top: Path, places: list[Path]) -> tuple[dict[str, Path], list[str]]:
    """The images in some folders by their names below the ``top`` one, and what is passed over."""
    found: dict[str, Path] = {}
    notes: list[str] = []
    for place in places:
        if len(places) > 1 and not has_images(place):
            continue
        inside = place.relative_to(top)
        found |= {(inside / name).as_posix(): file for name, file in image_files(place).items()}
        notes += passed_over(place, folders=len(places) == 1)
    if not found:
        raise DataError(f"{top}: no images there, nor in its {len(places) - 1} folders")
    return dict(sorted(found.items())), notes


def _file(path: Path) -> Frames:
    try:
        count = count_frames(path)
    except DataError as error:
        return Frames([partial(_fail, error)], 1)
    return Frames([partial(_file_sample, path.stem, path)] if count == 1 else _film(path), count)


def _film(path: Path) -> Iterator[Read]:
    try:
        for number, pixels in enumerate(read_frames(path)):
            yield partial(Sample, f"{path.stem}-{number:06d}", pixels)
    except DataError as error:  # raised where it is read, after the images before it
        yield partial(_fail, error)


def _file_sample(name: str, path: Path) -> Sample:
    return Sample(name, read_image(path), file=path)


def _fail(error: DataError) -> Sample:
    raise error


def _video(path: Path) -> Frames:
    notes: list[str] = []
    try:
        import cv2
    except ModuleNotFoundError:
        return Frames(_with_imageio(path, notes), notes=notes)
    return Frames(_with_opencv(cv2, str(path), path.stem, notes), notes=notes)


def _opencv(purpose: str) -> ModuleType:
    try:
        import cv2
    except ModuleNotFoundError:
        raise DataError(f"{purpose}: needs OpenCV; pip install opencv-python-headless") from None
    return cv2


def _with_opencv(cv2: ModuleType, source: int | str, name: str, notes: list[str]) -> Iterator[Read]:
    capture = cv2.VideoCapture(source)
    if not capture.isOpened():
        raise DataError(f"{source}: OpenCV cannot open it")
    try:
        declared = capture.get(cv2.CAP_PROP_FRAME_COUNT)  # of a camera: -1 or 0
        number = 0
        while True:
            there, picture = capture.read()
            if not there:
                break
            pixels = np.ascontiguousarray(picture[..., ::-1])
            yield partial(Sample, f"{name}-{number:06d}", pixels)
            number += 1
    finally:
        capture.release()
    if isinstance(source, str):
        yield from _end(source, number, declared, notes)


def _with_imageio(path: Path, notes: list[str]) -> Iterator[Read]:
    hint = "reading videos needs OpenCV; pip install opencv-python-headless"
    try:
        from imageio import v3
    except ModuleNotFoundError:
        raise DataError(f"{path}: {hint}") from None
    declared, number = math.nan, 0
    try:
        declared = v3.improps(path).n_images or math.nan
        for picture in v3.imiter(path):
            yield partial(Sample, f"{path.stem}-{number:06d}", np.asarray(picture[..., :3]))
            number += 1
    except Exception as error:  # plugins raise whatever comes up
        if not number:  # no plugin of imageio's takes it
            raise DataError(f"{path}: {hint} (imageio: {first_line(error)})") from None
        notes.append(f"{path}: cannot be read after frame {number - 1} ({first_line(error)})")
    yield from _end(path, number, declared, notes)


def _end(path: str | Path, number: int, declared: float, notes: list[str]) -> Iterator[Read]:
    """Tell of a video that ends before its ``declared`` number of frames."""
    if not number:
        yield partial(_fail, DataError(f"{path}: no frame of this video can be read"))
    elif math.isfinite(declared) and number < declared - max(1, TOLERANCE * declared):
        notes.append(
            f"{path}: {number} of {declared:.0f} frames could be read: the file breaks off, or a "
            f"part of it is damaged and later frames have too low a number"
        )
