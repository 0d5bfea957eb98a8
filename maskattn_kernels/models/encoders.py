# SPDX-License-Identifier: BSD-3-Clause
"""What an encoder is: any module that gives a pyramid of feature maps and says their sizes."""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from maskattn_kernels.common.text import one_line
from maskattn_kernels.models.efficientnet import EfficientNetLite0
from maskattn_kernels.models.light_encoder import LightEncoder
from maskattn_kernels.nn.checks import positive_int

__all__ = ["ENCODERS", "EncoderLike", "as_encoder", "encoded"]

ENCODERS: dict[str, Callable[[], nn.Module]] = {
    "light": LightEncoder,
    "efficientnet_lite0": EfficientNetLite0,
    "efficientnet_lite0_s16": partial(EfficientNetLite0, deepest=16),
}
"""What makes the encoders of this package, by name; configs and checkpoints give the name."""


@runtime_checkable
class EncoderLike(Protocol):
    """What `MaskAttnUNet` reads of an encoder, which is a ``torch.nn.Module``.

    Attributes:
        channels: of the maps, finest first.
        strides: pixels of the image in a place of each map, finest first.

    ``forward(image)`` returns a list of maps (B,C,h,w) for an image (B,3,H,W). Attributes ``mean``
    and ``std``, three numbers each, are read where an encoder has them: by them an image of values
    from 0 to 1 is normalised before the encoder.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from maskattn_kernels.models import MaskAttnUNet
        >>> class Halving(nn.Module):
        ...     channels, strides = (8, 16), (2, 4)
        ...
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        ...         self.second = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        ...
        ...     def forward(self, image):
        ...         fine = self.first(image)
        ...         return [fine, self.second(fine.relu())]
        >>> network = MaskAttnUNet(classes=5, encoder=Halving(), finest=2, attend_from=4)
        >>> network(torch.zeros(2, 3, 33, 40)).shape
        torch.Size([2, 5, 33, 40])
    """

    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def __call__(self, image: Tensor) -> list[Tensor]: ...


def as_encoder(module: nn.Module) -> nn.Module:
    """The module, if it is an encoder; one with timm's ``feature_info`` as an encoder.

    Raises:
        TypeError: it is not a module, or does not describe maps.
        ValueError: what it describes is not a pyramid.

    Example:
        >>> from torch import nn
        >>> from maskattn_kernels.models import EfficientNetLite0, as_encoder
        >>> as_encoder(EfficientNetLite0()).strides
        (2, 4, 8, 16, 32)
        >>> as_encoder(nn.Linear(2, 2))
        Traceback (most recent call last):
        TypeError: encoder: expected a module with channels and strides, or timm's with \
features_only=True, got Linear
    """
    if isinstance(module, nn.Module) and hasattr(module, "feature_info"):
        module = _Described(module)
    if not isinstance(module, nn.Module) or not isinstance(module, EncoderLike):
        raise TypeError(
            "encoder: expected a module with channels and strides, or timm's with "
            f"features_only=True, got {type(module).__name__}"
        )
    channels, strides = tuple(module.channels), tuple(module.strides)
    for values in (channels, strides):
        for value in values:
            positive_int("encoder", value)
    if len(channels) != len(strides):
        raise ValueError(
            f"encoder: expected as many channels as strides, got {channels} and {strides}"
        )
    if len(strides) < 2 or any(a >= b for a, b in pairwise(strides)):
        raise ValueError(
            "encoder: expected a pyramid, maps of at least two strides from fine to coarse, got "
            f"strides {strides}"
        )
    for name in ("mean", "std"):
        numbers = getattr(module, name, (0, 0, 0))
        if len(numbers) != 3:
            raise ValueError(f"encoder: expected three numbers as {name}, got {numbers}")
    return module


def encoded(encoder: Any, image: Tensor) -> list[Tensor]:
    """The maps of an encoder for an image.

    Args:
        encoder: from `as_encoder`.
        image: (B,3,H,W).

    Raises:
        ValueError: they are not those that it describes.
    """
    maps = list(encoder(image))
    fits = len(maps) == len(encoder.channels) and all(
        map.dim() == 4 and map.shape[1] == channels
        for map, channels in zip(maps, encoder.channels, strict=True)
    )
    if not fits:
        raise ValueError(
            f"encoder: expected maps (B,C,h,w) with C of {tuple(encoder.channels)}, got "
            f"{[tuple(map.shape) for map in maps]}"
        )
    return maps


class _Described(nn.Module):
    """A backbone of timm, which describes its maps by ``feature_info``.

    Some give maps (B,h,w,C), as ``output_fmt`` tells; some refuse images of another size than they
    were made for.
    """

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.channels = tuple(backbone.feature_info.channels())
        self.strides = tuple(backbone.feature_info.reduction())
        described = getattr(backbone, "pretrained_cfg", None) or {}
        if "mean" in described and "std" in described:
            self.mean, self.std = tuple(described["mean"]), tuple(described["std"])
        self.channels_last = str(getattr(backbone, "output_fmt", "NCHW")).endswith("NHWC")

    def forward(self, image: Tensor) -> list[Tensor]:
        try:
            maps = self.backbone(image)
        except torch.OutOfMemoryError:
            raise
        except (AssertionError, RuntimeError, ValueError) as error:
            size = " x ".join(str(side) for side in image.shape[-2:])
            raise ValueError(
                f"image: the encoder does not take {size} pixels ({one_line(error)[:200]})"
            ) from error
        return [map.permute(0, 3, 1, 2) if self.channels_last else map for map in maps]
