# SPDX-License-Identifier: BSD-3-Clause
"""The gradient of a hard choice of queries: the estimated value of each query's output.

A token's soft score s is to act as a gate on its query, out_i = a_i * attention_i, but the choice
is hard: a_i is 1 for a selected token and 0 for another, without a gradient in s_i. The
straight-through estimate (Bengio et al., 2013) takes d a_i / d s_i = 1: the score of a selected
query gets

    <g_i, out_i>        with g the gradient of out

which is what scaling its output would have done to the loss, to first order. A token that was not
selected has no output; it receives gradient only through the shared head.

Where the other tokens get something too, a base b in place of 0, the score gates what attention
adds to it, out_i = b + a_i * (attention_i - b), and gets <g_i, out_i - b>.

For keys no estimate is needed: key_bias = log s is a gate on every selected key, and its gradient
is true.
"""

from typing import Any

import torch
from torch import Tensor

from maskattn_kernels.nn.checks import at_least_float32

__all__ = ["straight_through"]


def straight_through(out: Tensor, score: Tensor, base: Tensor | None = None) -> Tensor:
    """``out`` as it is, with the gradient that `score` gets from a hard choice (see the module).

    Args:
        out: (B,H,N,D), attention's output; ``base`` for queries that are not selected.
        score: float (B,N), the soft score of each token.
        base: (B,H,1,D); None = 0.

    Returns:
        ``out``; gradients flow to ``out`` unchanged, and to ``score``.

    Example:
        >>> import torch
        >>> from maskattn_kernels.nn.straight_through import straight_through
        >>> out = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
        >>> score = torch.tensor([[0.9, 0.4]], requires_grad=True)
        >>> straight_through(out, score).sum().backward()
        >>> score.grad
        tensor([[2., 0.]])
    """
    return _StraightThrough.apply(out, score, base)


class _StraightThrough(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(out: Tensor, score: Tensor, base: Tensor | None) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None], output: Any) -> None:
        out, score, base = inputs
        ctx.save_for_backward(out if base is None else out - base)
        ctx.dtype = score.dtype

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (grad,), (added,) = grads, ctx.saved_tensors
        worth = (at_least_float32(grad) * at_least_float32(added)).sum((1, 3))
        return grad, worth.to(ctx.dtype), None
