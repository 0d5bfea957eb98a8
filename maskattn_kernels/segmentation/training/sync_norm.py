# SPDX-License-Identifier: BSD-3-Clause
"""Batch normalisation over the images of all processes, on any device.

torch's ``SyncBatchNorm`` refuses the CPU. This one asks only for `torch.distributed`, so that two
processes train to the same weights as one with the same global batch, whatever they run on.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from maskattn_kernels.nn.checks import at_least_float32

__all__ = ["SharedBatchNorm2d", "share_batch_norm"]


class SharedBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with the statistics of all processes; same parameters and buffers.

    Every process must hold the same number of pixels. With one process, or in eval mode, it is
    `nn.BatchNorm2d` itself.
    """

    def forward(self, input: Tensor) -> Tensor:
        together = self.training and dist.is_initialized() and dist.get_world_size() > 1
        if not together:
            return super().forward(input)
        x = at_least_float32(input)
        world = dist.get_world_size()
        mean = all_reduce(x.mean((0, 2, 3))) / world
        # The second pass costs one more message and keeps what mean(x^2) - mean^2 would cancel.
        centred = x - mean[:, None, None]
        variance = all_reduce(centred.square().mean((0, 2, 3))) / world
        self._remember(mean, variance, world * x.numel() // x.shape[1])
        scale = (variance + self.eps).rsqrt()
        if self.weight is not None:
            scale = scale * self.weight
        out = centred * scale[:, None, None]
        if self.bias is not None:
            out = out + self.bias[:, None, None]
        return out.to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        if self.running_mean is None or self.running_var is None:
            return
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
        momentum = 0.1 if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        unbiased = variance * (count / max(count - 1, 1))
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), momentum)


def share_batch_norm(module: nn.Module) -> None:
    """Let every `nn.BatchNorm2d` in ``module`` share its statistics among processes, in place.

    Example:
        >>> from torch import nn
        >>> from maskattn_kernels.segmentation.training.sync_norm import share_batch_norm
        >>> network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
        >>> share_batch_norm(network)
        >>> type(network[1]).__name__
        'SharedBatchNorm2d'
    """
    for part in module.modules():
        if type(part) is nn.BatchNorm2d:
            part.__class__ = SharedBatchNorm2d
