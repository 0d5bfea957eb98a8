# SPDX-License-Identifier: BSD-3-Clause
"""Reading image and label files, with one clear line for each that cannot be used."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.sample import Classes, Sample

__all__ = ["IMAGE_ENDINGS", "ImageFiles", "folder", "image_files", "read_image", "read_labels"]

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
MAX_PIXELS = 100_000_000
"""Larger images are refused: they are mistakes, or made to fill the memory."""


def read_image(path: Path) -> np.ndarray:
    """An image file as uint8 (H,W,3) RGB.

    Raises:
        DataError: missing, truncated, no image, or of more than `MAX_PIXELS`.
    """
    return _read(path, "RGB")


def read_labels(path: Path) -> np.ndarray:
    """A PNG of numbers as it is: (H,W) grey values or palette entries, or (H,W,3 or 4) bytes.

    Raises:
        DataError: as `read_image`, or a file whose pixels are no whole numbers.
    """
    values = _read(path, None)
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if values.dtype.kind not in "ui":
        raise DataError(f"{path}: expected whole numbers as pixels, got {values.dtype}")
    return values


def _read(path: Path, mode: str | None) -> np.ndarray:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # we have our own limit
            with Image.open(path) as file:
                if file.width * file.height > MAX_PIXELS:
                    raise DataError(
                        f"{path}: {file.width} x {file.height} pixels; expected at most "
                        f"{MAX_PIXELS // 1_000_000} million, resize it or remove it"
                    )
                return np.array(file.convert(mode) if mode else file)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except Image.DecompressionBombError:
        raise DataError(f"{path}: absurdly many pixels; resize it or remove it") from None
    except UnidentifiedImageError:
        raise DataError(
            f"{path}: not an image that can be read; remove it or save it again"
        ) from None
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        reason = " ".join(str(error).split())
        raise DataError(f"{path}: cannot be read ({reason}); remove it or save it again") from None


def folder(path: Path, layout: str) -> Path:
    """The path, if it is a folder.

    Args:
        path: that must be there.
        layout: the files that the data set must have, for the error.

    Raises:
        DataError: it is not there, or no folder.
    """
    if not path.is_dir():
        what = "is no folder" if path.exists() else "no such folder"
        raise DataError(f"{path}: {what}; expected the layout {layout}")
    return path


def image_files(where: Path, endings: Iterable[str] = IMAGE_ENDINGS) -> dict[str, Path]:
    """The image files right in a folder, by name without ending, sorted.

    Raises:
        DataError: none, or two of one name (a.jpg and a.png).
    """
    found: dict[str, Path] = {}
    known = tuple(endings)
    for path in sorted(where.iterdir()):
        if path.suffix.lower() in known and not path.name.startswith("."):
            if path.stem in found:
                raise DataError(
                    f"{where}: two files named {path.stem}: {found[path.stem].name} and {path.name}"
                )
            found[path.stem] = path
    if not found:
        raise DataError(f"{where}: no images there (files ending in {' '.join(known)})")
    return found


class ImageFiles:
    """Images without labels: one file, or all of a folder.

    Args:
        path: of an image or of a folder of images.
        classes: passed on.

    Raises:
        DataError: nothing there, or no image.
    """

    def __init__(self, path: Path, classes: Classes) -> None:
        path = Path(path)
        self.classes = classes
        if path.is_file():
            self._files = [(path.stem, path)]
        else:
            self._files = list(image_files(folder(path, "of images, or give one image")).items())

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        name, path = self._files[index]
        return Sample(name, read_image(path))
