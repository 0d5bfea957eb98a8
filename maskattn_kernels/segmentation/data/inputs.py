# SPDX-License-Identifier: BSD-3-Clause
"""From any image that a user has (file, PIL image, array, tensor) to a `Sample`."""

from collections.abc import Callable, Iterable, Mapping
from io import IOBase
from os import PathLike, fspath
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image

from maskattn_kernels.common.text import one_line
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.images import read_image
from maskattn_kernels.segmentation.data.pixels import rgb_pixels
from maskattn_kernels.segmentation.data.sample import Sample

__all__ = ["AnyImage", "OneImage", "as_sample", "listed"]

OneImage: TypeAlias = str | PathLike[str] | Image.Image | Sample
"""What is one image whatever it holds; arrays and tensors may be batches."""
AnyImage: TypeAlias = OneImage | np.ndarray | torch.Tensor | Callable[[], Sample]
"""What `as_sample` takes."""

_ONE = (str, PathLike, Image.Image, np.ndarray, torch.Tensor, Sample)
_NO_LIST = (bytes, bytearray, Mapping, IOBase)  # iterable, but of other things than images
_EXPECTED = "expected a path, a PIL image, an array, a tensor or a Sample"


def listed(images: AnyImage | Iterable[AnyImage]) -> tuple[list[AnyImage], bool]:
    """A list of images, and whether it was one image that was given.

    Args:
        images: one, or an iterable of them. An array or a tensor of four dimensions is a batch.

    Raises:
        TypeError: neither an image nor an iterable.
    """
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4:
        return list(images), False
    if isinstance(images, _ONE) or callable(images):
        return [images], True
    if not isinstance(images, Iterable) or isinstance(images, _NO_LIST):
        raise TypeError(f"images: {_EXPECTED}, or a list of these, got {type(images).__name__}")
    return list(images), False


def as_sample(image: AnyImage, number: int) -> Sample:
    """Read an image.

    Args:
        image: one of

            - a path: see `read_image`;
            - a PIL image, which is treated as a file would be (EXIF, 16 bits, transparency);
            - an array (H,W), (H,W,1), (H,W,3) or (H,W,4): grey, RGB, or RGB and alpha;
            - a tensor (1,H,W), (3,H,W) or (4,H,W), on any device;
            - a `Sample`, or a function that returns any of these.

            Arrays and tensors are uint8, or floating point from 0 to 1, which is rounded to 8 bits.
            Transparent pixels are laid over white. Pixels that need no conversion are not copied.
        number: its place among the images: for errors, and for the name if it has no file's.

    Raises:
        TypeError: another type or dtype; the message names the place.
        DataError: another shape, values outside of the range, or a file that cannot be read.
    """
    where = f"images[{number}]"
    if isinstance(image, Sample):
        pixels = image.image
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or not pixels.size:
            got = f"{pixels.dtype} {pixels.shape}"
            raise DataError(f"{where}: expected a Sample with an image uint8 (H,W,3), got {got}")
        return image
    if isinstance(image, str | PathLike):
        path = Path(fspath(image))
        return Sample(path.stem, read_image(path), file=path)
    name = f"image-{number:06d}"
    if isinstance(image, Image.Image):
        file = getattr(image, "filename", "")
        return Sample(Path(file).stem if file else name, _converted(image, where))
    if isinstance(image, torch.Tensor):
        if image.ndim != 3 or image.shape[0] not in (1, 3, 4) or not image.numel():
            expected = "a tensor (1,H,W), (3,H,W) or (4,H,W)"
            raise DataError(f"{where}: expected {expected}, got {tuple(image.shape)}")
        return Sample(name, _rgb(_values(image, where), where))
    if isinstance(image, np.ndarray):
        flat = image[..., None] if image.ndim == 2 else image
        if flat.ndim != 3 or flat.shape[2] not in (1, 3, 4) or not flat.size:
            expected = "an array (H,W), (H,W,1), (H,W,3) or (H,W,4)"
            raise DataError(f"{where}: expected {expected}, got {image.shape}")
        return Sample(name, _rgb(flat, where))
    if callable(image):
        return as_sample(image(), number)
    raise TypeError(f"{where}: {_EXPECTED}, got {type(image).__name__}")


def _values(image: torch.Tensor, where: str) -> np.ndarray:
    """A tensor (C,H,W) as an array (H,W,C)."""
    if image.layout != torch.strided or image.is_meta or image.is_quantized:
        kind = f"{image.layout}, {image.dtype}, {image.device}"
        raise TypeError(f"{where}: expected a dense tensor with pixels, got {kind}")
    values = image.detach().cpu().resolve_neg()
    values = values.float() if values.is_floating_point() else values
    return values.permute(1, 2, 0).numpy()


def _rgb(values: np.ndarray, where: str) -> np.ndarray:
    """Values (H,W,1 or 3 or 4) of the dtypes of `as_sample` as uint8 (H,W,3)."""
    if np.issubdtype(values.dtype, np.floating):
        low, high = float(values.min()), float(values.max())
        if not (low >= 0 and high <= 1):  # NaN too
            raise DataError(
                f"{where}: expected floating-point values from 0 to 1, got {low:.6g} to {high:.6g}"
            )
        values = np.rint(values * 255).astype(np.uint8)
    if values.dtype != np.uint8:
        raise TypeError(
            f"{where}: expected uint8, or floating point from 0 to 1, got {values.dtype}"
        )
    if values.shape[2] == 3:
        return np.ascontiguousarray(values)
    pixels = values[..., 0] if values.shape[2] == 1 else values
    return _converted(Image.fromarray(np.ascontiguousarray(pixels)), where)


def _converted(picture: Image.Image, where: str) -> np.ndarray:
    if not picture.width or not picture.height:
        raise DataError(f"{where}: expected pixels, got {picture.width} x {picture.height} of them")
    try:
        return rgb_pixels(picture, where)
    except DataError:
        raise
    except Exception as error:  # PIL decodes a file only now, and decoders raise whatever comes up
        reason = one_line(error)
        raise DataError(f"{where}: cannot be read ({reason})") from None
