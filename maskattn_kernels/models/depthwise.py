# SPDX-License-Identifier: BSD-3-Clause
"""`DepthwiseConv2d`: a depthwise convolution whose training in bfloat16 is fast on CPUs."""

import torch
from torch import Tensor, nn

__all__ = ["DepthwiseConv2d"]


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution without bias, in float32 under autocast on CPUs.

    PyTorch's gradients of depthwise convolutions in bfloat16 are slow there: measured on one core
    of an AMD Zen 5, a kernel of 5 x 5 takes 3 times as long as in float32, a stride of 2 takes 50
    times, and a training step of `EfficientNetLite0` spends half its time on them. The result has
    the dtype of autocast as usual. Weights are those of ``nn.Conv2d(channels, channels, kernel,
    stride, padding, groups=channels, bias=False)``, and elsewhere it is the same.

    Args:
        channels: of input and output.
        kernel: its side.
        stride, padding: as for ``nn.Conv2d``; None pads by half the kernel.

    Shapes:
        x (B,channels,H,W), as for ``nn.Conv2d``.

    Example:
        >>> import torch
        >>> from maskattn_kernels.models import DepthwiseConv2d
        >>> convolution = DepthwiseConv2d(8, 5, stride=2)
        >>> with torch.autocast("cpu", torch.bfloat16):
        ...     y = convolution(torch.randn(1, 8, 9, 12))
        >>> y.shape, y.dtype
        (torch.Size([1, 8, 5, 6]), torch.bfloat16)
    """

    def __init__(
        self, channels: int, kernel: int, stride: int = 1, padding: int | None = None
    ) -> None:
        padding = kernel // 2 if padding is None else padding
        super().__init__(channels, channels, kernel, stride, padding, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled("cpu") or x.device.type != "cpu":
            return super().forward(x)
        with torch.autocast("cpu", enabled=False):
            y = super().forward(x.float())
        return y.to(torch.get_autocast_dtype("cpu"))
