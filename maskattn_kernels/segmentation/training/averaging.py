# SPDX-License-Identifier: BSD-3-Clause
"""A moving average of the weights of a network in training (Polyak and Juditsky, 1992).

Single steps move the weights to and fro. Their average over the last steps scores more steadily,
and mostly higher, as long as the learning rate is not small.
"""

from copy import deepcopy
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["average_of", "update_average"]

Network = TypeVar("Network", bound=nn.Module)


def average_of(network: Network) -> Network:
    """A copy of a network for `update_average`, in eval mode and without gradients.

    Args:
        network: to be trained.
    """
    return deepcopy(network).requires_grad_(False).eval()


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """Move an average towards the weights after a step.

        average = d * average + (1 - d) * weights,    d = min(decay, (step - 1) / (step + 9))

    The first step replaces the weights of the start. Then the average spans the last tenth of the
    steps that are done, until ``decay`` limits the span to 1 / (1 - decay) steps: so a short run
    ends with an average of its last steps only.

    Running statistics of batch normalisation are averaged as weights are: those of the network
    belong to its weights of the last few steps, the average's weights to those of its whole span.
    Other buffers, such as the temperature of a selector, are copied.

    Args:
        average: by `average_of`.
        network: after the step.
        decay: d after many steps.
        step: steps that are done, from 1.

    Example:
        >>> from torch import nn
        >>> from maskattn_kernels.segmentation.training.averaging import update_average
        >>> network, average = nn.Linear(1, 1), nn.Linear(1, 1)
        >>> for step in (1, 2):
        ...     _ = nn.init.constant_(network.weight, step)
        ...     update_average(average, network, decay=0.999, step=step)
        >>> round(average.weight.item(), 4)  # 1 / 11 of the first, 10 / 11 of the second
        1.9091
    """
    share = 1 - min(decay, (step - 1) / (step + 9))
    for kept, now in zip(average.modules(), network.modules(), strict=True):
        statistics = isinstance(kept, _BatchNorm)
        for name, weight in kept.named_parameters(recurse=False):
            weight.lerp_(now.get_parameter(name), share)
        for name, buffer in kept.named_buffers(recurse=False):
            if statistics and buffer.is_floating_point():
                buffer.lerp_(now.get_buffer(name), share)
            else:
                buffer.copy_(now.get_buffer(name))
