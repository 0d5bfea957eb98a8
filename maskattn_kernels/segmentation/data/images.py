# SPDX-License-Identifier: BSD-3-Clause
"""Reading image and label files, with one clear line for each that cannot be used."""

import logging
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from maskattn_kernels.common.text import one_line
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.files import folder, image_files, passed_over
from maskattn_kernels.segmentation.data.pixels import orientation, raw_modes, rgb_pixels
from maskattn_kernels.segmentation.data.sample import Classes, Sample

__all__ = [
    "ImageFiles",
    "count_frames",
    "is_turned",
    "read_colors",
    "read_frames",
    "read_image",
    "read_labels",
    "read_mask",
    "turned_hint",
]

MAX_PIXELS = 100_000_000
"""Larger images are refused: they are mistakes, or made to fill the memory."""
_FILMS = ("GIF", "PNG", "WEBP", "AVIF", "TIFF")  # the second picture of others is a thumbnail
_LOSSY = ("JPEG", "MPO", "WEBP", "AVIF", "JPEG2000")
_SCALED = {"L;2": 85, "L;4": 17}
"""Pillow stretches grey of 2 and 4 bits to 0..255."""
_TIFF_SUBFILE, _THUMBNAIL_OR_MASK = 254, 0b101

logging.getLogger("PIL").addHandler(logging.NullHandler())  # else its errors go to stderr


def read_image(path: Path) -> np.ndarray:
    """The image file at ``path`` as uint8 (H,W,3) RGB, upright; of several pictures, the first.

    It is turned as its EXIF orientation says. See `pixels.rgb_pixels` for pictures of 16 bits, of
    floating-point numbers, and with transparent pixels.

    Raises:
        DataError: missing, truncated, not an image, of more than `MAX_PIXELS`, or with pixels that
            have no clear meaning as colours.
    """
    with _opened(path) as picture:
        return rgb_pixels(picture, path)


def read_frames(path: Path) -> Iterator[np.ndarray]:
    """All pictures of the file at ``path``, each as `read_image` gives one.

    An animation (GIF, PNG, WebP, AVIF) has frames and a TIFF has pages; thumbnails and masks among
    the pages are left out. Any other file has one picture, also where it holds more (the second of
    an MPO photograph is a preview, or the other eye's).

    Raises:
        DataError: as `read_image`, also for a file that breaks off, after the frames before.
    """
    with _errors_name(path):
        picture = Image.open(path)
    with picture:
        for number in _frame_numbers(picture, path):
            with _errors_name(path):
                picture.seek(number)
                _check_size(picture, path)
                pixels = rgb_pixels(picture, path)
            yield pixels


def count_frames(path: Path) -> int:
    """How many pictures `read_frames` gives of ``path``, as far as the file's structure tells.

    Raises:
        DataError: as `read_image`.
    """
    with _opened(path) as picture:
        return len(_frame_numbers(picture, path))


def _frame_numbers(picture: Image.Image, path: Path) -> Sequence[int]:
    with _errors_name(path):
        numbers = range(getattr(picture, "n_frames", 1) if picture.format in _FILMS else 1)
        if picture.format != "TIFF":
            return numbers
        pages = []
        for number in numbers:
            picture.seek(number)
            if not picture.tag_v2.get(_TIFF_SUBFILE, 0) & _THUMBNAIL_OR_MASK:  # type: ignore[attr-defined]
                pages.append(number)
        return pages or numbers[:1]


def read_labels(path: Path) -> np.ndarray:
    """The PNG at ``path`` as it is stored: (H,W) grey values or palette entries, or (H,W,2 to 4).

    Raises:
        DataError: as `read_image`, or pixels that are not exactly the numbers that were saved: a
            lossy format, 16 bits a channel in colour, no whole numbers, or an EXIF orientation.
    """
    with _opened(path) as picture:
        return _label_values(picture, path)


def _label_values(picture: Image.Image, path: Path) -> np.ndarray:
    if picture.format in _LOSSY:
        raise DataError(
            f"{path}: a {picture.format} file, which may not keep labels exactly; save it as PNG"
        )
    stored = raw_modes(picture)  # before `orientation`, which may load the pixels
    turn = orientation(picture)
    if turn > 1:
        raise DataError(
            f"{path}: labels with EXIF orientation {turn}, which only some programs apply; save "
            f"them upright without EXIF"
        )
    values = np.array(picture)
    if values.ndim == 3 and any(";16" in mode for mode in stored):
        raise DataError(
            f"{path}: labels with 16 bits a channel in colour; save them in grey, with 8 or 16 bits"
        )
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if values.dtype.kind not in "ui":
        raise DataError(f"{path}: expected whole numbers as pixels, got {values.dtype}")
    return values // _SCALED.get(stored[0], 1) if stored else values


def read_mask(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """The mask at ``path`` as `read_labels` gives it, and its palette if it has one.

    The palette is int16 (256,3) of red, green and blue, -1 for entries that the file does not have.

    Raises:
        DataError: as `read_labels`.
    """
    with _opened(path) as picture:
        entries = picture.getpalette("RGB") if picture.mode == "P" else None
        values = _label_values(picture, path)
    if entries is None:
        return values, None
    palette = np.full((256, 3), -1, dtype=np.int16)
    palette[: len(entries) // 3] = np.reshape(entries, (-1, 3))
    return values, palette


def read_colors(path: Path) -> np.ndarray:
    """The label PNG at ``path`` that holds colours, also in a palette: (H,W,3) or (H,W,4).

    Raises:
        DataError: as `read_labels`, or a PNG in grey.
    """
    values, palette = read_mask(path)
    if palette is not None:
        values = palette[values]
    if values.ndim != 3 or values.shape[-1] < 3:
        raise DataError(f"{path}: expected a PNG in colour (RGB)")
    return values


def is_turned(path: Path) -> bool:
    """Whether the image at ``path`` is turned or mirrored by its EXIF orientation."""
    with _opened(path) as picture:
        return orientation(picture) > 1


def turned_hint(path: Path, height: int, width: int) -> str:
    """Why labels are ``height`` x ``width``, if EXIF turns the image at ``path``; or ""."""
    with _opened(path) as picture:
        turn = orientation(picture) if picture.size == (width, height) else 1
    if turn < 5:
        return ""
    return (
        f"; {path} is stored as {width} x {height} and turned by its EXIF orientation {turn}: "
        f"label it as viewers show it, or save it upright without EXIF"
    )


class _PillowQuiet:
    """Pillow's warnings are off while any thread is inside: what matters becomes a DataError.

    `warnings.catch_warnings` alone would mix up the filters of threads that overlap.
    """

    def __init__(self) -> None:
        self._lock, self._inside = threading.Lock(), 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._inside:
                self._outer = warnings.catch_warnings()
                self._outer.__enter__()
                warnings.filterwarnings("ignore", module=r"PIL\.")
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._outer.__exit__(None, None, None)


_QUIET = _PillowQuiet()


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file of a size that is allowed."""
    with _errors_name(path), Image.open(path) as picture:
        _check_size(picture, path)
        yield picture


@contextmanager
def _errors_name(path: Path) -> Iterator[None]:
    """Whatever Pillow raises inside becomes one line that names the file."""
    try:
        with _QUIET:
            yield
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: a folder; expected an image file") from None
    except Image.DecompressionBombError:
        raise DataError(f"{path}: absurdly many pixels; resize it or remove it") from None
    except UnidentifiedImageError:
        raise DataError(
            f"{path}: not an image that can be read; remove it or save it again"
        ) from None
    except Exception as error:  # decoders raise whatever comes up, IndexError and struct.error too
        raise DataError(
            f"{path}: cannot be read ({one_line(error)}); remove it or save it again"
        ) from None


def _check_size(picture: Image.Image, path: Path) -> None:
    if picture.width * picture.height > MAX_PIXELS:
        raise DataError(
            f"{path}: {picture.width} x {picture.height} pixels; expected at most "
            f"{MAX_PIXELS // 1_000_000} million, resize it or remove it"
        )


class ImageFiles:
    """Images without labels: one file, or all of a folder.

    Args:
        path: of an image or of a folder of images.
        classes: kept as ``classes``.

    Attributes:
        notes: on the files of the folder that are passed over.

    Raises:
        DataError: nothing there, or no image.
    """

    def __init__(self, path: Path, classes: Classes) -> None:
        path = Path(path)
        self.classes = classes
        self.notes: tuple[str, ...] = ()
        if path.is_file():
            self._files = [(path.stem, path)]
        else:
            self._files = list(image_files(folder(path, "of images, or give one image")).items())
            self.notes = passed_over(path)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        name, path = self._files[index]
        return Sample(name, read_image(path), file=path)
