# SPDX-License-Identifier: BSD-3-Clause
"""The argument ``masks`` of a network: checked, and brought to the size of each feature map."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from maskattn_kernels.token_index import TokenIndex

__all__ = ["GivenMasks", "Mask", "Masks"]

Mask = Tensor | TokenIndex
Masks = Tensor | Mapping[str, Mask] | Sequence[Mask]


class GivenMasks:
    """What is given for each scale.

    Args:
        masks: None, a mask of the image's size, or masks by the names of ``strides`` or in their
            order, as `MaskAttnUNet.forward` takes them.
        strides: of each scale, by name.
        image: (B,C,H,W).

    Raises:
        TypeError, ValueError: ``masks`` are not those of the image or of the scales.
    """

    def __init__(self, masks: Masks | None, strides: Mapping[str, int], image: Tensor) -> None:
        self.strides = strides
        self.whole: Tensor | None = None
        self.by_name: Mapping[str, Mask] = {}
        scales = tuple(strides)
        if isinstance(masks, Tensor):
            self.whole = _of_image(masks, image)
        elif isinstance(masks, Mapping):
            for name in masks:
                if name not in strides:
                    raise ValueError(f"masks: expected names among {scales}, got {name!r}")
            self.by_name = masks
        elif isinstance(masks, Sequence):
            if len(masks) != len(scales):
                raise ValueError(f"masks: expected {len(scales)} masks, got {len(masks)}")
            self.by_name = dict(zip(scales, masks, strict=True))
        elif masks is not None:
            raise TypeError(
                "masks: expected a bool Tensor, a mapping or a sequence of them, "
                f"got {type(masks).__name__}"
            )

    def at(self, name: str, features: Tensor) -> Mask | None:
        """The mask of a scale whose map is ``features`` (B,C,h,w); None = the selector draws.

        That of the image is pooled: a place is selected where any of its pixels is.
        """
        if self.whole is None:
            return self.by_name.get(name)
        stride, size = self.strides[name], features.shape[-2:]
        pooled = F.max_pool2d(self.whole, stride, ceil_mode=True)
        if pooled.shape[-2:] != size:  # of an encoder that rounds down
            pooled = F.adaptive_max_pool2d(self.whole, tuple(size))
        return pooled[:, 0] > 0


def _of_image(mask: Tensor, image: Tensor) -> Tensor:
    """A checked mask as float (B,1,H,W)."""
    if mask.dtype != torch.bool:
        raise TypeError(f"masks: expected dtype torch.bool (True = selected), got {mask.dtype}")
    batch, _, height, width = image.shape
    fits = tuple(mask.shape[1:]) in ((height, width), (1, height, width))
    if not fits or mask.shape[0] not in (1, batch):
        raise ValueError(
            f"masks: expected shape ({batch}, {height}, {width}), got {tuple(mask.shape)}"
        )
    return mask.view(-1, 1, height, width).float()
