# SPDX-License-Identifier: BSD-3-Clause
"""FlashAttention over packed sequences as a peer: the selected tokens of all items in one row.

It is `torch.nn.attention.varlen.varlen_attn`, in float16 and bfloat16 on a GPU. Only the GPU knows
how many tokens are selected. The host waits for this number to allocate by it; the variant that
does not wait allocates for all tokens and clears the rows past the selected ones.
"""

from typing import Any

import torch
from torch import Tensor

__all__ = ["varlen", "varlen_no_wait"]


def varlen(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, mode: str) -> Tensor:
    """Gather, varlen_attn, scatter; waits for the number of selected tokens."""
    index = mask.flatten().nonzero().squeeze(1)
    return _attend(query, key, value, mask, mode, index, int(mask.sum(1).max()))


def varlen_no_wait(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, mode: str) -> Tensor:
    """The same with all tokens in the index, those selected first."""
    index = mask.flatten().to(torch.uint8).argsort(descending=True, stable=True)
    return _attend(query, key, value, mask, mode, index, mask.shape[1])


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, mode: str, index: Tensor, longest: int
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    attend: Any = varlen_attn  # returns a tuple only if it also returns the lse
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
