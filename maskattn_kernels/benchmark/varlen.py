# SPDX-License-Identifier: BSD-3-Clause
"""FlashAttention over packed sequences as a peer: the selected tokens of all items in one row.

It is `torch.nn.attention.varlen.varlen_attn` or FlashAttention-4 of the package flash-attn-4, in
float16 and bfloat16 on a GPU. Only the GPU knows how many tokens are selected. The host waits for
this number to allocate by it; the variant that does not wait allocates for all tokens and clears
the rows past the selected ones.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["fa4_varlen", "fa4_varlen_no_wait", "varlen", "varlen_no_wait"]

Kernel = Callable[..., Any]  # (query, key, value, offsets of queries, of keys, max_q=, max_k=)


def varlen(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, mode: str) -> Tensor:
    """Gather, varlen_attn, scatter; waits for the number of selected tokens."""
    return _waiting(_of_torch(), query, key, value, mask, mode)


def varlen_no_wait(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, mode: str) -> Tensor:
    """The same with all tokens in the index, those selected first."""
    return _not_waiting(_of_torch(), query, key, value, mask, mode)


def fa4_varlen(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, mode: str) -> Tensor:
    """`varlen` with the kernels of FlashAttention-4."""
    return _waiting(_of_fa4(), query, key, value, mask, mode)


def fa4_varlen_no_wait(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, mode: str
) -> Tensor:
    """`varlen_no_wait` with the kernels of FlashAttention-4."""
    return _not_waiting(_of_fa4(), query, key, value, mask, mode)


def _of_torch() -> Kernel:
    from torch.nn.attention.varlen import varlen_attn

    return varlen_attn


def _of_fa4() -> Kernel:
    from flash_attn.cute import flash_attn_varlen_func

    def attend(
        query: Tensor, key: Tensor, value: Tensor, of_queries: Tensor, of_keys: Tensor, **most: int
    ) -> Tensor:
        out, _ = flash_attn_varlen_func(
            query, key, value, cu_seqlens_q=of_queries, cu_seqlens_k=of_keys,
            max_seqlen_q=most["max_q"], max_seqlen_k=most["max_k"],
        )  # fmt: skip
        return out

    return attend


def _waiting(
    attend: Kernel, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, mode: str
) -> Tensor:
    index = mask.flatten().nonzero().squeeze(1)
    return _attend(attend, query, key, value, mask, mode, index, int(mask.sum(1).max()))


def _not_waiting(
    attend: Kernel, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, mode: str
) -> Tensor:
    index = mask.flatten().to(torch.uint8).argsort(descending=True, stable=True)
    return _attend(attend, query, key, value, mask, mode, index, mask.shape[1])


def _attend(
    attend: Kernel,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor,
    mode: str,
    index: Tensor,
    longest: int,
) -> Tensor:
    batch, heads, tokens, dim = query.shape
    offsets = torch.nn.functional.pad(mask.sum(1).cumsum(0), (1, 0)).int()
    past = None
    if len(index) == mask.numel():
        past = (torch.arange(len(index), device=index.device) >= offsets[-1])[:, None, None]

    def rows(t: Tensor) -> Tensor:
        return t.transpose(1, 2).reshape(batch * tokens, heads, dim)

    def take(t: Tensor) -> Tensor:
        taken = rows(t).index_select(0, index)
        return taken if past is None else taken.masked_fill(past, 0)

    if mode == "k":
        every = torch.arange(batch + 1, dtype=torch.int32, device=mask.device) * tokens
        out = attend(
            rows(query), take(key), take(value), every, offsets, max_q=tokens, max_k=longest
        )
    else:
        out = attend(
            *map(take, (query, key, value)), offsets, offsets, max_q=longest, max_k=longest
        )
        if past is not None:
            out = out.masked_fill(past, 0)
        out = out.new_zeros(batch * tokens, heads, dim).index_copy(0, index, out)
    return out.view(batch, tokens, heads, dim).transpose(1, 2)
