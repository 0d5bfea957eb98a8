# SPDX-License-Identifier: BSD-3-Clause
"""The convolutional blocks of the U-Net. Convolutions have no bias: a BatchNorm follows each."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ConvBlock", "Down", "SlimUp", "Up"]


class ConvBlock(nn.Module):
    """conv3x3 - BN - GELU - conv3x3 - BN; with ``residual``, GELU of the sum with the input.

    Args:
        in_channels, out_channels: of the block; equal when ``residual``.
        mid_channels: between the convolutions; None = ``out_channels``.
        residual: add the input and apply GELU once more.

    Shapes:
        x (B,in_channels,H,W); the result (B,out_channels,H,W).

    Example:
        >>> import torch
        >>> from maskattn_kernels.models import ConvBlock
        >>> ConvBlock(3, 8)(torch.randn(1, 3, 5, 7)).shape
        torch.Size([1, 8, 5, 7])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        mid_channels: int | None = None,
        *,
        residual: bool = False,
    ) -> None:
        super().__init__()
        if residual and in_channels != out_channels:
            raise ValueError(
                f"out_channels: expected {in_channels} as in_channels (residual=True), "
                f"got {out_channels}"
            )
        mid_channels = out_channels if mid_channels is None else mid_channels
        self.residual = residual
        self.conv1 = nn.Conv2d(in_channels, mid_channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(mid_channels)
        self.gelu = nn.GELU()  # a module, which `prepare_for_inference` joins to the convolution
        self.conv2 = nn.Conv2d(mid_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.gelu(self.norm1(self.conv1(x)))))
        return F.gelu(x + y) if self.residual else y


class Down(nn.Module):
    """Halves the size: max-pool, residual block, block, BN. Odd sizes round up: no pixel is lost.

    Args:
        in_channels, out_channels: of the map before and after.

    Shapes:
        x (B,in_channels,H,W); the result (B,out_channels,ceil(H/2),ceil(W/2)).

    Example:
        >>> import torch
        >>> from maskattn_kernels.models import Down
        >>> Down(8, 16)(torch.randn(1, 8, 5, 8)).shape
        torch.Size([1, 16, 3, 4])
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.residual = ConvBlock(in_channels, in_channels, residual=True)
        self.block = ConvBlock(in_channels, out_channels)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.block(self.residual(self.pool(x))))


class Up(nn.Module):
    """Doubles the size to that of ``skip``: bilinear, concatenate, residual block, block, BN.

    Args:
        in_channels: of the map from below.
        skip_channels: of the map from the encoder.
        out_channels: of the result.

    Shapes:
        x (B,in_channels,h,w), skip (B,skip_channels,H,W); the result (B,out_channels,H,W).

    Example:
        >>> import torch
        >>> from maskattn_kernels.models import Up
        >>> Up(16, 8, 4)(torch.randn(1, 16, 3, 4), torch.randn(1, 8, 5, 8)).shape
        torch.Size([1, 4, 5, 8])
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        joint = in_channels + skip_channels
        self.residual = ConvBlock(joint, joint, residual=True)
        self.block = ConvBlock(joint, out_channels, joint // 2)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.norm(self.block(self.residual(_joined(x, skip))))


class SlimUp(nn.Module):
    """As `Up` in a fraction of its work: bilinear, concatenate, twice conv3x3 - BN - GELU.

    Args:
        in_channels: of the map from below.
        skip_channels: of the map from the encoder.
        out_channels: of the result.

    Shapes:
        x (B,in_channels,h,w), skip (B,skip_channels,H,W); the result (B,out_channels,H,W).

    Example:
        >>> import torch
        >>> from maskattn_kernels.models import SlimUp
        >>> SlimUp(16, 8, 4)(torch.randn(1, 16, 3, 4), torch.randn(1, 8, 5, 8)).shape
        torch.Size([1, 4, 5, 8])
    """

    def __init__(self, in_channels: int, skip_channels: int, out_channels: int) -> None:
        super().__init__()
        self.block = ConvBlock(in_channels + skip_channels, out_channels)
        self.gelu = nn.GELU()

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.gelu(self.block(_joined(x, skip)))


def _joined(x: Tensor, skip: Tensor) -> Tensor:
    x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False)
    return torch.cat([skip, x], dim=1)
