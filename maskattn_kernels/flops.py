# SPDX-License-Identifier: BSD-3-Clause
"""How many floating point operations a call takes, for `torch.utils.flop_counter`.

Only selected tokens count, so the counts of an index are read on the host.
"""

from typing import Any

import torch
from torch import Tensor

from maskattn_kernels.token_index import with_heads
from maskattn_kernels.torch_compat import FakeTensor


def fwd_flops(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_indices: Tensor | None,
    query_counts: Tensor | None,
    key_indices: Tensor | None,
    key_counts: Tensor | None,
    *rest: Any,
    **out: Any,
) -> int:
    return _product_flops(query, key, query_counts, key_counts)


def infer_flops(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    *rest: Any,
    **out: Any,
) -> int:
    masks = (m if m is None else with_heads(m) for m in (query_mask, key_mask))
    query_counts, key_counts = (m if m is None else m.sum(-1) for m in masks)
    return _product_flops(query, key, query_counts, key_counts)


def _product_flops(
    query: Tensor, key: Tensor, query_counts: Tensor | None, key_counts: Tensor | None
) -> int:
    """Two products of 2 D operations for each pair of a selected query and a selected key."""
    batch, heads, query_len, head_dim = query.shape
    kv_heads, key_len = key.shape[1:3]
    queries, keys = _counts(query_counts, query_len), _counts(key_counts, key_len)
    queries = queries.expand(batch, heads).unflatten(1, (kv_heads, heads // max(kv_heads, 1)))
    pairs = queries * keys.expand(batch, kv_heads).unsqueeze(-1)
    return 4 * head_dim * int(pairs.sum())


def bwd_flops(
    dout: Tensor, dlse: Tensor | None, query: Tensor, key: Tensor, *rest: Any, **out: Any
) -> int:
    """Five products in place of the forward's two."""
    value, _, _, *index = rest[:7]
    return 5 * fwd_flops(query, key, value, *index) // 2


def masks_bwd_flops(
    dout: Tensor, dlse: Tensor | None, query: Tensor, key: Tensor, *rest: Any, **out: Any
) -> int:
    value, _, _, *masks = rest[:5]
    return 5 * infer_flops(query, key, value, *masks) // 2


def _counts(counts: Tensor | None, length: int) -> Tensor:
    """How many tokens are selected; all of them where that is not known, as for fake tensors."""
    if counts is None or counts.is_meta or isinstance(counts, FakeTensor):
        return torch.tensor([[length]])
    return counts.cpu().long()
