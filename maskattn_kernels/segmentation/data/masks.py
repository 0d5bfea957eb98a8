# SPDX-License-Identifier: BSD-3-Clause
"""Masks of own data as class numbers: by ids, or by the colours of ``classes.yaml``."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from maskattn_kernels.segmentation.data.classes_file import LARGEST_ID, ClassesFile
from maskattn_kernels.segmentation.data.coco_format import ids_from_rgb
from maskattn_kernels.segmentation.data.errors import DataError
from maskattn_kernels.segmentation.data.images import read_mask
from maskattn_kernels.segmentation.data.label_maps import map_ids
from maskattn_kernels.segmentation.data.sample import numbers_from_ids

__all__ = ["read_numbers", "read_objects"]


def read_numbers(path: Path, known: ClassesFile, file: Path) -> np.ndarray:
    """A mask as class numbers or `VOID`, uint8 (H,W).

    A grey value or a palette entry is the id of a class. Colours, also those of the palette, are
    those that `known` gives its classes. A mask that can be read as both must be the same as both.

    Args:
        path: of the mask.
        known: what ``classes.yaml`` says.
        file: of ``classes.yaml``, for errors.

    Raises:
        DataError: the mask cannot be read, or has ids or colours of no class.
    """
    values, palette = read_mask(path)
    flat = _flat(values, path)
    advice = f"add it to classes or to void in {file}"
    colors = _colors(values, palette) if known.number_of_color else None
    by_color = None if colors is None else _known(colors, _packed(known))
    if flat is None:
        if by_color is None:
            raise DataError(f"{path}: {_unknown_color(values, known, file)}")
        return by_color
    by_id = _known(flat, known.classes.number_of)
    if by_id is None and by_color is not None:
        return by_color
    if by_id is not None and by_color is not None and (by_id != by_color).any():
        raise DataError(
            f"{path}: its numbers are ids of classes and its colours are those of others; save it "
            f"in grey with ids as values, or correct the colours in {file}"
        )
    return map_ids(flat, known.classes.number_of, path, advice) if by_id is None else by_id


def read_objects(path: Path) -> np.ndarray:
    """The number of each pixel's object, (H,W).

    Args:
        path: of a mask in grey, also where it is saved in colour.

    Raises:
        DataError: the mask cannot be read, is of colours, or has numbers of more than 16 bits.
    """
    values, _ = read_mask(path)
    flat = _flat(values, path)
    if flat is None:
        raise DataError(f"{path}: expected one number a pixel, not colours")
    low, high = int(flat.min()), int(flat.max())
    if low < 0 or high > LARGEST_ID:
        raise DataError(f"{path}: expected numbers from 0 to {LARGEST_ID}, got {low} to {high}")
    return flat


def _flat(values: np.ndarray, path: Path) -> np.ndarray | None:
    """The single number of each pixel, also of grey that is saved in colour; None = colours."""
    if values.ndim == 2:
        return values
    if values.shape[-1] in (2, 4) and (values[..., -1] != 255).any():
        raise DataError(f"{path}: a mask with transparent pixels; save it without alpha channel")
    grey = values[..., :3] if values.shape[-1] > 2 else values[..., :1]
    return grey[..., 0] if (grey == grey[..., :1]).all() else None


def _colors(values: np.ndarray, palette: np.ndarray | None) -> np.ndarray | None:
    """The colour of each pixel as one number; None = a mask in grey."""
    if palette is not None:
        return ids_from_rgb(palette)[values]
    return ids_from_rgb(values) if values.ndim == 3 and values.shape[-1] > 2 else None


def _packed(known: ClassesFile) -> dict[int, int]:
    return {
        int(ids_from_rgb(np.array(color))): number
        for color, number in known.number_of_color.items()
    }


def _known(values: np.ndarray, number_of: Mapping[int, int]) -> np.ndarray | None:
    try:
        return numbers_from_ids(values, number_of)
    except ValueError:
        return None


def _unknown_color(values: np.ndarray, known: ClassesFile, file: Path) -> str:
    channels = values.shape[-1]
    if not known.number_of_color:
        return (
            f"expected one number a pixel (greyscale or palette), got {channels} channels; save "
            f"class ids, not colours, or give each class its color in {file}"
        )
    present = np.unique(values[..., :3].reshape(-1, 3), axis=0).tolist()
    unknown = [color for color in present if tuple(color) not in known.number_of_color]
    return (
        f"unknown color {unknown[0]}; give it to a class as `color:` or add it to void in {file}"
        + (f" ({len(unknown)} unknown colours)" if len(unknown) > 1 else "")
    )
