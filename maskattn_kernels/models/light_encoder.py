# SPDX-License-Identifier: BSD-3-Clause
"""`LightEncoder`: a small encoder to train from scratch."""

from collections.abc import Sequence

from torch import Tensor, nn

from maskattn_kernels.models.depthwise import DepthwiseConv2d
from maskattn_kernels.nn.checks import positive_int

__all__ = ["LightEncoder"]


class LightEncoder(nn.Module):
    """Large depthwise convolutions between small ones: few parameters, a wide view.

    Two 3x3 convolutions of stride 2, then stages of blocks, with a 3x3 convolution of stride 2
    between two stages. A block adds to its input: depthwise convolution, 1x1 to ``ratio`` times the
    channels, GELU, 1x1 back.

    Args:
        channels: of each stage, and of its map.
        depths: blocks of each stage.
        kernel: side of the depthwise convolutions, odd.
        ratio: of the channels inside a block to those outside.

    Raises:
        TypeError, ValueError: one line naming the argument, what came, and what was expected.

    Shapes:
        image (B,3,H,W), any H and W from 1; the maps (B,C,ceil(H/S),ceil(W/S)) with C of
        ``channels`` and S of ``strides``: 4, 8, 16, ..

    Example:
        >>> import torch
        >>> from maskattn_kernels.models import LightEncoder
        >>> encoder = LightEncoder().eval()
        >>> [tuple(map.shape[1:]) for map in encoder(torch.zeros(1, 3, 90, 120))]
        [(32, 23, 30), (64, 12, 15), (128, 6, 8), (256, 3, 4)]
    """

    def __init__(
        self,
        channels: Sequence[int] = (32, 64, 128, 256),
        depths: Sequence[int] = (2, 2, 6, 2),
        kernel: int = 7,
        ratio: int = 3,
    ) -> None:
        super().__init__()
        self.channels = tuple(positive_int("channels", c) for c in channels)
        self.strides = tuple(4 * 2**i for i in range(len(self.channels)))
        if len(depths) != len(self.channels) or not depths:
            raise ValueError(f"depths: expected {len(self.channels)} numbers, got {tuple(depths)}")
        if positive_int("kernel", kernel) % 2 == 0:
            raise ValueError(f"kernel: expected an odd number, got {kernel}")
        positive_int("ratio", ratio)
        first = self.channels[0]
        inside = max(1, first // 2)
        self.stem = nn.Sequential(*_halving(3, inside), nn.GELU(), *_halving(inside, first))
        self.stages = nn.ModuleList()
        below = first
        for number, (own, depth) in enumerate(zip(self.channels, depths, strict=True)):
            between = [] if number == 0 else _halving(below, own)
            blocks = [_Block(own, kernel, ratio) for _ in range(positive_int("depths", depth))]
            self.stages.append(nn.Sequential(*between, *blocks))
            below = own

    def forward(self, image: Tensor) -> list[Tensor]:
        x = self.stem(image)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class _Block(nn.Module):
    def __init__(self, channels: int, kernel: int, ratio: int) -> None:
        super().__init__()
        inside = ratio * channels
        self.depthwise = DepthwiseConv2d(channels, kernel)
        self.norm1 = nn.BatchNorm2d(channels)
        self.expand = nn.Conv2d(channels, inside, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(inside)
        self.gelu = nn.GELU()
        self.project = nn.Conv2d(inside, channels, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm3.weight)  # a block is the identity at first

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(self.depthwise(x))
        y = self.gelu(self.norm2(self.expand(y)))
        return x + self.norm3(self.project(y))


def _halving(in_channels: int, out_channels: int) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels)]
