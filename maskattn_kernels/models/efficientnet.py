# SPDX-License-Identifier: BSD-3-Clause
"""`EfficientNetLite0`: an encoder for processors without an accelerator, with ImageNet weights.

Modules are named as in timm's ``tf_efficientnet_lite0``, so that its weight files fit.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from maskattn_kernels.models.depthwise import DepthwiseConv2d

__all__ = ["EfficientNetLite0"]

_EPSILON = 1e-3  # of every BatchNorm, as the published weights were trained with

#: Blocks, kernel, stride of the first block, channels of each stage; and whether it is the last of
#: its size, so that what it gives is a map of the pyramid.
_STAGES = (
    (1, 3, 1, 16, True),
    (2, 3, 2, 24, True),
    (2, 5, 2, 40, True),
    (3, 3, 2, 80, False),
    (3, 5, 1, 112, True),
    (4, 5, 2, 192, False),
    (1, 3, 1, 320, True),
)
_EXPANSION = 6


class EfficientNetLite0(nn.Module):
    """The feature maps of EfficientNet-Lite0: inverted residuals, ReLU6, no squeeze-and-excitation.

    3.4 M parameters, 0.8 GFLOPs for a 224 x 224 image. Attributes: ``channels`` and ``strides`` of
    the maps, finest first, and ``mean`` and ``std``, by which an image of values from 0 to 1 is
    normalised.

    Args:
        deepest: stride of the last map, 32 or 16; without the stages after stride 16, which hold
            most of the weights, 0.7 M parameters and 0.6 GFLOPs are left.

    Raises:
        ValueError: another stride.

    Shapes:
        image (B,3,H,W), any H and W from 1; the maps (B,C,ceil(H/S),ceil(W/S)) with C of
        ``channels`` and S of ``strides``.

    Source: Tan and Le, "EfficientNet", 2019, and Liu, "Higher accuracy on vision models with
    EfficientNet-Lite", 2020. Strided convolutions pad as TensorFlow's "SAME" does.

    Example:
        >>> import torch
        >>> from maskattn_kernels.models import EfficientNetLite0
        >>> encoder = EfficientNetLite0().eval()
        >>> [tuple(map.shape[1:]) for map in encoder(torch.zeros(1, 3, 90, 120))]
        [(16, 45, 60), (24, 23, 30), (40, 12, 15), (112, 6, 8), (320, 3, 4)]
    """

    mean = (127 / 255,) * 3
    std = (128 / 255,) * 3

    def __init__(self, deepest: int = 32) -> None:
        super().__init__()
        if deepest not in (16, 32):
            raise ValueError(f"deepest: expected 16 or 32, got {deepest!r}")
        used = _STAGES if deepest == 32 else _STAGES[:5]
        self.channels = tuple(channels for *_, channels, is_last in used if is_last)
        self.strides = tuple(2 ** (i + 1) for i in range(len(self.channels)))
        self.pad = _SamePad(3)
        self.conv_stem = nn.Conv2d(3, 32, 3, stride=2, bias=False)
        self.bn1 = nn.BatchNorm2d(32, eps=_EPSILON)
        self.act1 = nn.ReLU6()
        stages: list[nn.Module] = []
        below = 32
        for count, kernel, stride, channels, _ in used:
            blocks: list[nn.Module] = []
            for place in range(count):
                first_stride = stride if place == 0 else 1
                if not stages:
                    blocks.append(_DepthwiseSeparable(below, channels, kernel))
                else:
                    blocks.append(_InvertedResidual(below, channels, kernel, first_stride))
                below = channels
            stages.append(nn.Sequential(*blocks))
        self.blocks = nn.Sequential(*stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # as in TensorFlow
                fan_out = module.out_channels * module.kernel_size[0] ** 2 / module.groups
                nn.init.normal_(module.weight, std=(2 / fan_out) ** 0.5)

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.act1(self.bn1(self.conv_stem(self.pad(image))))
        maps = []
        for stage, (*_, is_last) in zip(self.blocks, _STAGES, strict=False):
            x = stage(x)
            if is_last:
                maps.append(x)
        return maps


class _DepthwiseSeparable(nn.Module):
    """Depthwise convolution, then one to other channels; the first stage."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.conv_dw = _depthwise(in_channels, kernel)
        self.bn1 = nn.BatchNorm2d(in_channels, eps=_EPSILON)
        self.act1 = nn.ReLU6()
        self.conv_pw = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels, eps=_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn2(self.conv_pw(self.act1(self.bn1(self.conv_dw(x)))))


class _InvertedResidual(nn.Module):
    """To six times the channels, depthwise convolution, and back; added to the input if alike."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int) -> None:
        super().__init__()
        inside = _EXPANSION * in_channels
        self.adds = stride == 1 and in_channels == out_channels
        self.conv_pw = nn.Conv2d(in_channels, inside, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inside, eps=_EPSILON)
        self.act1 = nn.ReLU6()
        self.pad = _SamePad(kernel) if stride == 2 else nn.Identity()
        self.conv_dw = _depthwise(inside, kernel, stride)
        self.bn2 = nn.BatchNorm2d(inside, eps=_EPSILON)
        self.act2 = nn.ReLU6()
        self.conv_pwl = nn.Conv2d(inside, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels, eps=_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act1(self.bn1(self.conv_pw(x)))
        y = self.act2(self.bn2(self.conv_dw(self.pad(y))))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.adds else y


def _depthwise(channels: int, kernel: int, stride: int = 1) -> DepthwiseConv2d:
    """Strided ones do not pad: `_SamePad` does it before them, by the size of the map."""
    return DepthwiseConv2d(channels, kernel, stride, None if stride == 1 else 0)


class _SamePad(nn.Module):
    """The zeros that a convolution of stride 2 needs around a map for ceil(H/2) x ceil(W/2).

    Even sizes get one row and one column less at the start: TensorFlow's "SAME".
    """

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.end = kernel // 2

    def forward(self, x: Tensor) -> Tensor:
        top, left = self.end - 1 + x.shape[-2] % 2, self.end - 1 + x.shape[-1] % 2
        return F.pad(x, (left, self.end, top, self.end))
