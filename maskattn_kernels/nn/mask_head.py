# SPDX-License-Identifier: BSD-3-Clause
"""`MaskHead`: a logit for each pixel of a feature map, by which selectors select."""

import math
from contextlib import AbstractContextManager, nullcontext
from statistics import NormalDist

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from maskattn_kernels.nn.checks import at_least_float32, fraction, positive_int
from maskattn_kernels.torch_compat import has_autocast

__all__ = ["MaskHead"]


class MaskHead(nn.Module):
    """A 1x1 convolution on the features, joined with the mask logits of the previous scale.

        logit = conv1x1(features) + carry * resize(previous)

    which is one 1x1 convolution over the features with the previous logits as one more channel.
    Computed in float32 (float64 for float64) whatever the dtype of the features, and under
    autocast: in bfloat16 many pixels would tie.

    Args:
        channels: C of the features.
        joins_previous: learn ``carry``; needs logits of the previous scale.
        start: about this fraction of normalised features has a positive logit at first; None = no
            bias, for selectors that only compare logits with each other.

    Raises:
        TypeError, ValueError: one line naming the argument, what came, and what was expected.

    Shapes:
        features (B,C,H,W), previous (B,1,h,w) of any size or None; logits float32 (B,1,H,W).
        Gradients flow to the features, the previous logits and the parameters.

    Source: Cheng et al., MaskAttn-UNet, arXiv 2503.10686.

    Example:
        >>> import torch
        >>> from maskattn_kernels.nn import MaskHead
        >>> above = MaskHead(8)(torch.randn(2, 8, 16, 16))
        >>> MaskHead(32, joins_previous=True)(torch.randn(2, 32, 8, 8), above).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(
        self, channels: int, *, joins_previous: bool = False, start: float | None = 0.5
    ) -> None:
        super().__init__()
        channels = positive_int("channels", channels)
        bias = None
        if start is not None:
            # Logits of normalised features have a standard deviation near 1/sqrt(3) with the
            # default weights; carried logits bring their share of the shift with them.
            share = 1.0 - _CARRY if joins_previous else 1.0
            inside = min(max(fraction("start", start), 0.001), 0.999)  # infinite at 0 and 1
            bias = share * NormalDist().inv_cdf(inside) / math.sqrt(3.0)
        self.conv = _Logits(channels, bias)
        self.carry = nn.Parameter(torch.tensor(_CARRY)) if joins_previous else None

    def reset_parameters(self) -> None:
        """Draws the weights anew, as in the constructor."""
        self.conv.reset_parameters()
        if self.carry is not None:
            nn.init.constant_(self.carry, _CARRY)

    def forward(self, features: Tensor, previous: Tensor | None = None) -> Tensor:
        features = at_least_float32(features)
        weight, bias = self.conv.weight.to(features.dtype), self.conv.bias
        bias = None if bias is None else bias.to(features.dtype)
        with _without_autocast(features.device.type):
            logits = F.conv2d(features, weight, bias)
        if self.carry is None or previous is None:
            return logits
        size = logits.shape[-2:]
        resized = F.interpolate(previous, size=size, mode="bilinear", align_corners=False)
        return logits + self.carry.to(logits.dtype) * resized


_CARRY = 0.5


class _Logits(nn.Conv2d):
    """A 1x1 convolution to one channel, whose bias, if any, starts at a given value."""

    def __init__(self, channels: int, start_bias: float | None) -> None:
        self.start_bias = start_bias  # before the constructor, which resets the parameters
        super().__init__(channels, 1, 1, bias=start_bias is not None)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if self.bias is not None and self.start_bias is not None:
            nn.init.constant_(self.bias, self.start_bias)


def _without_autocast(device: str) -> AbstractContextManager[object]:
    return torch.autocast(device, enabled=False) if has_autocast(device) else nullcontext()
