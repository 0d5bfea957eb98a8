# SPDX-License-Identifier: BSD-3-Clause
"""Label maps at another size."""

import torch
from torch import Tensor

__all__ = ["resize_labels"]


def resize_labels(labels: Tensor, size: tuple[int, int]) -> Tensor:
    """Label maps (B,H,W) at another size by nearest neighbour: to score at an image's own size.

    Args:
        labels: any dtype of whole numbers.
        size: height and width.

    Example:
        >>> resize_labels(torch.tensor([[[1, 2]]]), (2, 4)).tolist()
        [[[1, 1, 2, 2], [1, 1, 2, 2]]]
    """
    rows, columns = (
        ((torch.arange(target, device=labels.device) + 0.5) * (source / target)).long()
        for target, source in zip(size, labels.shape[-2:], strict=True)
    )
    return labels[:, rows][:, :, columns]
