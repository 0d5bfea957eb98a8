# SPDX-License-Identifier: BSD-3-Clause
"""The forward op of the fa4 backend: a call of masked attention as one of FlashAttention-4.

FlashAttention-4 knows nothing of masks over tokens, but its keys may lie in pages, in any order. A
page of one token makes the list of selected keys a table of pages, and their kernel gathers. What
it lacks is done around it in PyTorch: selected queries are packed before, and their results put
back with zeros between them.

An item is what has a list of its own: a batch entry with all its heads or, folded, one of its kv
heads with the query heads that share it.

Nothing here looks at what a tensor holds, so that no call waits for the GPU.
"""

import torch
from torch import Tensor

from maskattn_kernels.backends.arguments import check_forward
from maskattn_kernels.backends.base import empty_result
from maskattn_kernels.backends.fa4_kernels import attend
from maskattn_kernels.token_index import TokenIndex


def fwd(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_indices: Tensor | None,
    query_counts: Tensor | None,
    key_indices: Tensor | None,
    key_counts: Tensor | None,
    key_bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    check_forward(query, key, value, query_indices, query_counts, key_indices, key_counts, key_bias)
    if not query.numel() or not key.numel():
        lse = query.new_full(query.shape[:3], -torch.inf, dtype=torch.float32)
        return empty_result(query).zero_(), lse
    queries = _listed(query_indices, query_counts)
    keys = _listed(key_indices, key_counts)
    if key_bias is not None:
        keys = _without_those_at_minus_infinity(keys, key_bias)
    folds = _folds(key, queries, keys)

    q, positive = _with_positive_scale(query, scale)
    q, k, v = _items(q, folds), _items(key, folds), _items(value, folds)
    pages = counts = bias = lengths = rows = None
    if keys is not None:
        pages = _rows(keys.indices, key, folds)
        k, v = k.flatten(0, 1).unsqueeze(1), v.flatten(0, 1).unsqueeze(1)
        if key_bias is not None:
            bias = key_bias.flatten().index_select(0, pages.flatten()).view(pages.shape)
        counts = _per_item(keys.counts, key, folds)
        keyless = counts <= 0
        # An item without keys reads one all the same, for the kernel divides by the number of
        # keys. What comes of it is replaced.
        counts = counts.clamp(1, key.shape[2])
    if queries is not None and queries.counts.shape[1] in (1, folds):
        rows = _rows(queries.indices, query, folds)
        q = q.flatten(0, 1).index_select(0, rows.flatten()).view(q.shape)
        lengths = _per_item(queries.counts, query, folds).clamp(0, query.shape[2])
        if keys is not None:
            lengths = lengths.masked_fill(keyless, 0)
    out, lse = attend(q, k, v, positive, lengths, pages, counts, bias)

    if rows is not None and lengths is not None:
        out, lse = _put_back(out, lse, rows, lengths)
    elif keys is not None:
        out.masked_fill_(keyless.view(-1, 1, 1, 1), 0)
        lse.masked_fill_(keyless.view(-1, 1, 1), -torch.inf)
    out, lse = _in_batches(out, query), lse.reshape(query.shape[:3]).contiguous()
    if queries is not None and rows is None:
        unselected = ~queries.to_mask()
        out = out.masked_fill(unselected.unsqueeze(-1), 0)
        lse = lse.masked_fill(unselected, -torch.inf)
    result = empty_result(query)
    return out if out.stride() == result.stride() else result.copy_(out), lse


def _listed(indices: Tensor | None, counts: Tensor | None) -> TokenIndex | None:
    return None if indices is None or counts is None else TokenIndex(indices, counts)


def _without_those_at_minus_infinity(keys: TokenIndex | None, key_bias: Tensor) -> TokenIndex:
    """The keys that have a finite bias, of each kv head; the others would spread their NaN."""
    selected = key_bias != -torch.inf
    if keys is not None:
        selected = selected & keys.to_mask()
    return TokenIndex(*torch.ops.maskattn.fa4_select_tokens(selected))


def _folds(key: Tensor, *lists: TokenIndex | None) -> int:
    """How many items a batch entry is: 1, or its kv heads.

    Kv heads with lists of their own must be items. Others are, where that spares a copy: where the
    tokens of a head lie side by side in memory.
    """
    kv_heads = key.shape[1]
    per_head = any(tokens is not None and tokens.counts.shape[1] > 1 for tokens in lists)
    return kv_heads if per_head or key.stride(1) > key.stride(2) else 1


def _with_positive_scale(query: Tensor, scale: float) -> tuple[Tensor, float]:
    """The same scores from a scale above 0."""
    if scale > 0:
        return query, scale
    return (-query, -scale) if scale < 0 else (torch.zeros_like(query), 1.0)


def _items(t: Tensor, folds: int) -> Tensor:
    """(B, H, N, D) as (items, N, H / folds, D); a view where the memory allows one."""
    return t.unflatten(1, (folds, -1)).transpose(2, 3).flatten(0, 1)


def _per_item(counts: Tensor, t: Tensor, folds: int) -> Tensor:
    """Counts (B | 1, H | 1) as (items,)."""
    return counts.expand(t.shape[0], folds).reshape(-1)


def _rows(indices: Tensor, t: Tensor, folds: int) -> Tensor:
    """int32 (items, N): where each token is in memory that holds t's items one after the other.

    Entries past the count name no token. They become one of the same item, as do those that a list
    made by hand has outside of the sequence: else they would name one of the next item, or memory
    behind the last one.
    """
    items, n = t.shape[0] * folds, indices.shape[-1]
    inside = indices.clamp(0, n - 1).expand(t.shape[0], folds, n).reshape(items, n)
    starts = torch.arange(0, items * n, n, dtype=torch.int32, device=t.device)
    return inside + starts.unsqueeze(1)


def _put_back(out: Tensor, lse: Tensor, rows: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The results of packed queries at the places of their tokens, and zeros and -inf elsewhere."""
    items, n = rows.shape
    past = torch.arange(n, dtype=torch.int32, device=rows.device) >= lengths.unsqueeze(1)
    places = rows.masked_fill(past, items * n).flatten().long()  # one row more takes what is past

    def put(results: Tensor, elsewhere: float) -> Tensor:
        whole = results.new_full((items * n + 1, *results.shape[2:]), elsewhere)
        whole.index_copy_(0, places, results.flatten(0, 1))
        return whole.narrow(0, 0, items * n).view(results.shape)

    return put(out, 0), put(lse.transpose(1, 2), -torch.inf).transpose(1, 2)


def _in_batches(out: Tensor, query: Tensor) -> Tensor:
    """(items, N, heads, D) as (B, Hq, N, D)."""
    if out.shape[2] == 1:
        return out.view(query.shape)
    return out.unflatten(0, (query.shape[0], -1)).transpose(2, 3).flatten(1, 2)
