# SPDX-License-Identifier: BSD-3-Clause
"""The gradient of a hard choice of tokens: what the scores of a selector learn from attention.

Let every token have a gate, its soft score s. Attention with gates, as the forward pass has it:

    out_i = a_i * sum_j w_j e_ij v_j / sum_j w_j e_ij,      e_ij = exp(scale <q_i, k_j>)

    selected      a_i = 1   (a gate on the query)     w_j = s_j   (a gate on the key: key_bias)
    not selected  a_i = 0                             w_j = 0

Attention itself gives the exact gradient in s_j of the selected keys, through key_bias = log s_j.
The rest is the straight-through estimate, d a_i / d s_i = 1 for every query and d w_j / d s_j = 1
for keys that are not selected (Bengio et al., 2013), worked out in closed form. With g the gradient
of out, S the selected tokens and Z = sum of s over S:

    query i in S      <g_i, out_i>                     "is what attention brought here any good?"
    query i not in S  <g_i, mean>                      "would it have been?"
    key j not in S    sum_i <g_i, v_j - out_i> / Z     "would v_j have been a better answer?"

What tokens not selected *would* have done needs e_ij that nobody computed. They are taken as equal:
then a query's answer is ``mean``, the s-weighted mean of the selected values, and the last sum
splits into <sum_i g_i, v_j> - sum_i <g_i, out_i>, so all costs O(N D), not O(N^2 D). That is exact
for queries of zero and a guess otherwise, roughest where attention is sharp. Without it, tokens
that are not selected would hear of their worth only through the head they share with the others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from maskattn_kernels.nn.checks import at_least_float32

__all__ = ["straight_through"]


def straight_through(
    out: Tensor, score: Tensor, value: Tensor, mask: Tensor, *, queries: bool
) -> Tensor:
    """``out`` as it is, with the gradient that `score` gets from a hard choice (see the module).

    Args:
        out: (B,H,N,D), attention's output, 0 for queries that are not selected.
        score: float (B,N), the soft score of each token.
        value: (B,H,N,D), attention's values.
        mask: bool (B,N), the hard choice.
        queries: whether ``mask`` selected queries too, or keys only.

    Returns:
        ``out``; gradients flow to ``out`` unchanged, and to ``score``.

    Example:
        >>> import torch
        >>> from maskattn_kernels.nn.straight_through import straight_through
        >>> out, value = torch.ones(1, 1, 2, 3), torch.ones(1, 1, 2, 3)
        >>> score = torch.tensor([[0.9, 0.4]], requires_grad=True)
        >>> mask = torch.tensor([[True, False]])
        >>> straight_through(out, score, value, mask, queries=True).sum().backward()
        >>> score.grad
        tensor([[3., 3.]])
    """
    return _StraightThrough.apply(out, score, value, mask, queries)


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(out: Tensor, score: Tensor, value: Tensor, mask: Tensor, queries: bool) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.queries = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        out, score, value, mask = ctx.saved_tensors
        g, out, value, gate = (at_least_float32(t) for t in (grad, out, value, score))
        asking = mask.to(g.dtype) if ctx.queries else torch.ones_like(gate, dtype=g.dtype)
        gate = gate.to(g.dtype).masked_fill(~mask, 0.0)
        total = gate.sum(1, keepdim=True).clamp_min(torch.finfo(g.dtype).tiny)
        worth = (g * out).sum((1, 3)) * asking
        summed = torch.einsum("bhnd,bn->bhd", g, asking)
        wanted = torch.einsum("bhnd,bhd->bn", value, summed) - worth.sum(1, keepdim=True)
        left_out = wanted / total
        if ctx.queries:
            mean = torch.einsum("bhnd,bn->bhd", value, gate / total)
            left_out = left_out + torch.einsum("bhnd,bhd->bn", g, mean)
        else:
            worth = torch.zeros_like(worth)  # every query asks, whatever its score
        return grad, torch.where(mask, worth, left_out).to(score.dtype), None, None, None
