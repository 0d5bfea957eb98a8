# SPDX-License-Identifier: BSD-3-Clause
"""From a picture of any kind to 8-bit RGB, upright: 16 bit, float, transparent, turned by EXIF."""

from pathlib import Path

import numpy as np
from PIL import Image

from maskattn_kernels.segmentation.data.errors import DataError

__all__ = ["orientation", "raw_modes", "rgb_pixels"]

BACKDROP = 255
"""What transparent pixels are laid over: white, as most viewers do."""
DARKEST = 4096
"""16-bit pictures whose largest value is below this one are refused: they would become black."""
_EXIF_ORIENTATION, _TIFF_BITS, _TIFF_PHOTOMETRIC, _TIFF_LARGEST = 0x112, 258, 262, 281
_ALPHA_MODES = ("LA", "PA", "RGBA", "La", "RGBa")


def rgb_pixels(picture: Image.Image, path: Path | str) -> np.ndarray:
    """A picture as uint8 (H,W,3) RGB, turned as its EXIF orientation says.

    - 16-bit values are divided by 257, so that 65535 becomes 255; if a TIFF declares a smaller
      largest value (12 bits), it is that value that becomes 255. A picture that uses less than a
      sixteenth of its range (12-bit values in a 16-bit file) is refused, since it would be black.
    - Floating-point values are levels from 0 to 1; other values are refused.
    - Transparent pixels are laid over white; a picture that is transparent everywhere is refused.

    Args:
        picture: just opened or moved to a frame, its pixels not loaded yet.
        path: of the file, or another name for errors.

    Raises:
        DataError: one of the refusals above.
    """
    deep = _has_16_bits(picture)
    if picture.mode.startswith("I") or picture.mode == "F":
        grey = _grey_levels(picture, path)
        pixels = np.repeat(grey[..., None], 3, axis=2)
    elif _has_alpha(picture):
        pixels = _laid_over(picture, path)
    else:
        pixels = np.array(picture.convert("RGB"))
    if deep and 0 < pixels.max() < DARKEST // 256:
        raise _too_dark(path)
    return _turned(pixels, orientation(picture))


def orientation(picture: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 = as stored.

    EXIF data that cannot be read count as none: viewers show such a picture as it is stored.
    """
    try:
        value = picture.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # Pillow's parser raises whatever comes up
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def raw_modes(picture: Image.Image) -> list[str]:
    """How the file stores the pixels of ``picture``, in Pillow's words; empty once it is loaded."""
    # The last argument of a decoder: "L;4", ("RGB;16B", ..) or, of a few formats, a number.
    arguments = [tile[3] for tile in getattr(picture, "tile", ())]
    return [str(a[0] if isinstance(a, tuple) and a else a) for a in arguments]


def _turned(pixels: np.ndarray, turn: int) -> np.ndarray:
    if turn >= 5:
        pixels = pixels.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def _has_16_bits(picture: Image.Image) -> bool:
    """Whether the file holds 16 bits a channel; Pillow keeps only 8 of a colour's 16."""
    # BGR;16: 5 + 6 + 5 bits
    return any(";16" in mode and "BGR" not in mode for mode in raw_modes(picture))


def _grey_levels(picture: Image.Image, path: Path | str) -> np.ndarray:
    values = np.array(picture)
    if picture.mode == "F":
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            low, high = values.min(), values.max()
            raise DataError(
                f"{path}: floating-point pixels from {low:.6g} to {high:.6g}; expected levels from "
                f"0 to 1, scale them or save the picture with 8 bits"
            )
        return np.rint(255 * values).astype(np.uint8)
    if picture.mode == "I" and picture.format not in ("PNG", "PPM"):
        raise DataError(
            f"{path}: signed or 32-bit whole numbers as pixels; expected 8 or 16 bits without sign"
        )
    tags = getattr(picture, "tag_v2", {})
    bits = tags.get(_TIFF_BITS, (16,))[0]
    largest = _declared(tags.get(_TIFF_LARGEST)) or 2**bits - 1
    if largest == 65535 and 0 < values.max() < DARKEST:
        raise _too_dark(path)
    levels = np.rint(np.clip(values / largest, 0, 1) * 255).astype(np.uint8)
    if tags.get(_TIFF_PHOTOMETRIC) == 0:  # 0 is white
        levels = 255 - levels
    key = picture.info.get("transparency")
    return levels if key is None else np.where(values == key, BACKDROP, levels).astype(np.uint8)


def _declared(largest: object) -> int | None:
    """The largest value that a TIFF declares, if it is that of a number of bits.

    Any other value is the largest one of this very picture, and says nothing of the next.
    """
    value = largest[0] if isinstance(largest, tuple) and largest else largest
    return (
        value
        if isinstance(value, int) and value in [2**bits - 1 for bits in range(8, 17)]
        else None
    )


def _too_dark(path: Path | str) -> DataError:
    return DataError(
        f"{path}: 16-bit pixels below {DARKEST} only (12-bit values?), which would be black; scale "
        f"them to 0..65535 or save the picture with 8 bits"
    )


def _has_alpha(picture: Image.Image) -> bool:
    if picture.mode in _ALPHA_MODES or "transparency" in picture.info:
        return True
    return picture.palette is not None and picture.palette.mode.endswith("A")


def _laid_over(picture: Image.Image, path: Path | str) -> np.ndarray:
    if picture.mode == "La":
        picture = picture.convert("LA")
    colors = picture.convert("RGBA")
    if not colors.getchannel("A").getextrema()[1]:
        raise DataError(f"{path}: every pixel is transparent; remove the alpha channel")
    backdrop = Image.new("RGBA", colors.size, (BACKDROP, BACKDROP, BACKDROP, 255))
    return np.array(Image.alpha_composite(backdrop, colors).convert("RGB"))
