# SPDX-License-Identifier: BSD-3-Clause
"""Weighted samples of the pixels of an image, for losses that compare pixels with each other.

A sample without replacement with weights 1 / area is that of the smallest keys -log(u) * area, u
drawn evenly from 0 to 1 (Efraimidis and Spirakis, 2006). The draws come from a fixed
low-discrepancy sequence: no generator, and no value of the device is read on the host.
"""

import torch
from torch import Tensor

__all__ = ["areas", "even_draws"]

_GOLDEN = 0.6180339887498949


def even_draws(count: int, device: torch.device) -> Tensor:
    """Numbers spread evenly between 0 and 1, in an order that looks random.

    Args:
        count: how many.
        device: of the result.

    Returns:
        float64 (count,).
    """
    steps = torch.arange(1, count + 1, device=device, dtype=torch.float64)
    return ((steps * _GOLDEN) % 1.0).clamp(1e-9, 1 - 1e-9)


def areas(groups: Tensor, most: int) -> Tensor:
    """How often each number from 0 to ``most`` occurs in each row.

    Args:
        groups: int64 (B,N), numbers from 0 to ``most``.
        most: the largest.

    Returns:
        int64 (B, most + 1).
    """
    empty = torch.zeros(groups.shape[0], most + 1, dtype=torch.int64, device=groups.device)
    return empty.scatter_add_(1, groups, torch.ones_like(groups))
