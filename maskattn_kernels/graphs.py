# SPDX-License-Identifier: BSD-3-Clause
"""CUDA graphs: what must have happened before a call can be captured."""

from typing import Any

import torch
from torch import Tensor

from maskattn_kernels.functional import masked_attention

__all__ = ["warm_up"]


def warm_up(query: Tensor, key: Tensor, value: Tensor, **call: Any) -> None:
    """Runs a call once, forward and backward, so that a CUDA graph can capture it next.

    Under `torch.no_grad()` it runs forward only.

    The first call of a kind compiles and loads its kernels, which a stream that is being captured
    may refuse. A kind is what shapes, strides and dtypes say: call it with the tensors that will be
    captured, or with others like them. It waits for the device; nothing of the results is kept.

    Args:
        query: (B, Hq, Nq, D), as of `masked_attention`.
        key: (B, Hkv, Nk, D).
        value: (B, Hkv, Nk, D).
        call: the other arguments of `masked_attention`. With ``return_lse=True`` the backward pass
            is also that of a loss in which lse takes part.

    Raises:
        TypeError, ValueError, NotImplementedError: as `masked_attention`.

    Gradients: none; those of the arguments are left alone.

    Example:
        >>> import torch
        >>> from maskattn_kernels import masked_attention, warm_up
        >>> q, k, v = torch.randn(3, 1, 2, 64, 16).unbind()
        >>> mask = torch.rand(1, 64) < 0.5
        >>> warm_up(q, k, v, key_mask=mask)
        >>> # graph = torch.cuda.CUDAGraph()
        >>> # with torch.cuda.graph(graph):
        >>> #     out = masked_attention(q, k, v, key_mask=mask)
    """
    with torch.no_grad():
        masked_attention(query, key, value, **call)
    if torch.is_grad_enabled():
        inputs = [t.detach().requires_grad_() for t in (query, key, value)]
        results = masked_attention(*inputs, **call)
        results = (results,) if isinstance(results, Tensor) else results
        torch.autograd.grad(results, inputs, [torch.zeros_like(t) for t in results])
    if query.is_cuda:
        torch.cuda.synchronize(query.device)
