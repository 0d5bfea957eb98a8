# SPDX-License-Identifier: BSD-3-Clause
"""Images to predict, one after another: a file, a folder, frames of a video or of a camera."""

from collections.abc import Callable, Iterator
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from types import ModuleType
from typing import TypeAlias

import numpy as np

from maskattn_kernels.common.text import first_line
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.files import image_files
from maskattn_kernels.segmentation.data.images import (
    count_frames,
    read_frames,
    read_image,
)
from maskattn_kernels.segmentation.data.sample import Sample

__all__ = ["frames"]

VIDEO_ENDINGS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm")


Read: TypeAlias = Callable[[], Sample]
"""Gives an image whose name is unique in its source; it may be called in any thread."""


def frames(source: str | PathLike[str]) -> Iterator[Read]:
    """All images of a source, as functions that read them.

    Args:
        source: an image file, also one of many frames (an animation, a TIFF of many pages); a
            folder of images, each of which is one image; a video (needs OpenCV or imageio with a
            plugin for videos); a number: that camera (needs OpenCV), whose frames do not end.

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
    if source.isascii() and source.isdigit():
        return _with_opencv(_opencv(f"camera {source}"), int(source), f"camera{source}")
    path = Path(source)
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise DataError(f"{source}: no such file or folder")
    if path.suffix.lower() in VIDEO_ENDINGS:
        return _video(path)
    return _file(path)


def _folder(folder: Path) -> Iterator[Read]:
    for name, file in image_files(folder).items():
        yield partial(_file_sample, name, file)


def _file(path: Path) -> Iterator[Read]:
    try:
        if count_frames(path) == 1:
            yield partial(_file_sample, path.stem, path)
            return
        for number, pixels in enumerate(read_frames(path)):
            yield partial(Sample, f"{path.stem}-{number:06d}", pixels)
    except DataError as error:  # raised where it is read, after the images before it
        yield partial(_fail, error)


def _file_sample(name: str, path: Path) -> Sample:
    return Sample(name, read_image(path))


def _fail(error: DataError) -> Sample:
    raise error


def _video(path: Path) -> Iterator[Read]:
    try:
        import cv2
    except ModuleNotFoundError:
        return _with_imageio(path)
    return _with_opencv(cv2, str(path), path.stem)


def _opencv(purpose: str) -> ModuleType:
    try:
        import cv2
    except ModuleNotFoundError:
        raise DataError(f"{purpose}: needs OpenCV; pip install opencv-python-headless") from None
    return cv2


def _with_opencv(cv2: ModuleType, source: int | str, name: str) -> Iterator[Read]:
    capture = cv2.VideoCapture(source)
    if not capture.isOpened():
        raise DataError(f"{source}: OpenCV cannot open it")
    try:
        number = 0
        while True:
            there, picture = capture.read()
            if not there:
                return
            pixels = np.ascontiguousarray(picture[..., ::-1])
            yield partial(Sample, f"{name}-{number:06d}", pixels)
            number += 1
    finally:
        capture.release()


def _with_imageio(path: Path) -> Iterator[Read]:
    hint = "reading videos needs OpenCV; pip install opencv-python-headless"
    try:
        from imageio import v3
    except ModuleNotFoundError:
        raise DataError(f"{path}: {hint}") from None
    try:
        for number, picture in enumerate(v3.imiter(path)):
            yield partial(Sample, f"{path.stem}-{number:06d}", np.asarray(picture[..., :3]))
    except (ImportError, OSError) as error:  # no plugin of imageio's takes it
        raise DataError(f"{path}: {hint} (imageio: {first_line(error)})") from None
