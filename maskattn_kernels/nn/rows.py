# SPDX-License-Identifier: BSD-3-Clause
"""The highest scores of each row as a mask: one op of the C++ library in plain code on a CPU."""

import torch
from torch import Tensor

from maskattn_kernels.op_table import OPS
from maskattn_kernels.ops import in_plain_code
from maskattn_kernels.torch_compat import direct

__all__ = ["first_above", "highest_of_rows"]


def highest_of_rows(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` highest scores of each row, and the lowest of them; no gradient.

    Args:
        scores: float (B,N), finite. Of equal ones, the first count as higher.
        count: from 1 to N.

    Returns:
        bool (B,N), and (B,1) in the dtype of ``scores``.

    Example:
        >>> import torch
        >>> from maskattn_kernels.nn.rows import highest_of_rows
        >>> highest_of_rows(torch.tensor([[3.0, 1.0, 2.0, 2.0]]), 2)
        (tensor([[ True, False,  True, False]]), tensor([[2.]]))
    """
    scores = scores.detach()
    if (
        in_plain_code()
        and type(scores) is Tensor
        and scores.is_cpu
        and scores.dtype is torch.float32
        and _OP is not None
    ):
        mask, border = direct(_OP)(scores, count)
        return mask, border
    # topk and not kthvalue, which exporters to ONNX do not know.
    border = scores.topk(count, dim=1, sorted=False).values.amin(1, keepdim=True)
    return first_above(scores, border, count), border


def first_above(rows: Tensor, border: Tensor, count: Tensor | int) -> Tensor:
    """bool as rows (.., N): what is above the border (.., 1), and of what equals it the first ones,
    so that there are ``count`` (.., 1) in all."""
    above, ties = rows > border, rows == border
    free = count - above.sum(-1, keepdim=True)
    return above | (ties & (ties.cumsum(-1) <= free))


def _fake(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    return scores.new_empty(scores.shape, dtype=torch.bool), scores.new_empty((len(scores), 1))


_OP = torch.ops.maskattn.cpu_select_highest.default if "cpu" in OPS else None
if _OP is not None:
    torch.library.register_fake(_OP, _fake)
