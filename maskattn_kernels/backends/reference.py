# SPDX-License-Identifier: BSD-3-Clause
"""The op in plain PyTorch: any device, float64 too. Short enough to teach from; the tests'
yardstick.

    scores_ij = scale * <q_i, k_j> + key_bias_j          for selected keys j, else -inf
    lse_i     = log sum_j exp(scores_ij)
    out_i     = sum_j p_ij v_j,   p_ij = exp(scores_ij - lse_i) as a softmax

It works on blocks of query rows, so that no N x N matrix exists, and it asks the device for
nothing. Tokens that are not selected are set to zero before any arithmetic: whatever they hold
cannot leak, not even as 0 * NaN. The price of plainness is time: scores of unselected tokens are
computed as well.
"""

import torch
from torch import Tensor

from maskattn_kernels.backends.arguments import check_backward, check_forward, check_lists
from maskattn_kernels.backends.base import SCHEMAS, Backend, accumulation_dtype, empty_result
from maskattn_kernels.problem import Problem
from maskattn_kernels.token_index import TokenIndex

MAX_BLOCK_SCORES = 1 << 21  # scores held at a time: 8 MiB of float32


class ReferenceBackend(Backend):
    name = "reference"

    def reasons(self, problem: Problem) -> list[str]:
        return []

    def build(self) -> dict[str, str]:
        return {"torch": torch.__version__}


def select_tokens(mask: Tensor) -> tuple[Tensor, Tensor]:
    n = mask.shape[-1]
    counts = mask.sum(-1, dtype=torch.int32)
    order = (~mask).to(torch.uint8).argsort(dim=-1, stable=True).int()  # selected tokens come first
    past_count = torch.arange(n, device=mask.device) >= counts.unsqueeze(-1)
    return order.masked_fill(past_count, n), counts


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
    check_lists("query_mask", query, query_indices, query_counts)
    check_lists("key_mask", key, key_indices, key_counts)
    q_selected = selected_rows(query, query_indices, query_counts)
    k_selected = selected_keys(key, key_indices, key_counts, key_bias)
    kv_heads = key.shape[1]
    q = grouped(zero_unless(q_selected, query), kv_heads)
    k, v = zero_unless(k_selected, key), zero_unless(k_selected, value)

    out, lse = torch.zeros_like(q), q.new_full(q.shape[:-1], -torch.inf)
    for rows in row_blocks(q, k):
        scores = block_scores(q[..., rows, :], k, k_selected, key_bias, scale)
        lse[..., rows] = scores.logsumexp(-1)
        p = probabilities(scores)
        out[..., rows, :] = (p.flatten(2, 3) @ v).unflatten(2, p.shape[2:4])

    lse = lse.flatten(1, 2).masked_fill(~q_selected, -torch.inf)
    return like(query, zero_unless(q_selected & (lse != -torch.inf), out.flatten(1, 2))), lse


def bwd(
    dout: Tensor,
    dlse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    query_indices: Tensor | None,
    query_counts: Tensor | None,
    key_indices: Tensor | None,
    key_counts: Tensor | None,
    key_bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    check_forward(query, key, value, query_indices, query_counts, key_indices, key_counts, key_bias)
    check_backward(dout, dlse, out, lse, query)
    check_lists("query_mask", query, query_indices, query_counts)
    check_lists("key_mask", key, key_indices, key_counts)
    live = lse != -torch.inf  # selected queries that see a key: the others have no gradient
    k_selected = selected_keys(key, key_indices, key_counts, key_bias)
    kv_heads = key.shape[1]
    q, do = grouped(zero_unless(live, query), kv_heads), grouped(zero_unless(live, dout), kv_heads)
    k, v = zero_unless(k_selected, key), zero_unless(k_selected, value)
    delta = (do * grouped(zero_unless(live, out), kv_heads)).sum(-1)
    if dlse is not None:
        delta = delta - dlse.masked_fill(~live, 0).unflatten(1, delta.shape[1:3])
    lse = lse.unflatten(1, delta.shape[1:3])

    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    dbias = k.new_zeros(k.shape[:-1])
    for rows in row_blocks(q, k):
        q_block, do_block = q[..., rows, :], do[..., rows, :]
        scores = block_scores(q_block, k, k_selected, key_bias, scale)
        dead = (lse[..., rows] == -torch.inf).unsqueeze(-1)
        p = probabilities(scores).masked_fill(dead, 0)
        dp = (do_block.flatten(2, 3) @ v.mT).unflatten(2, p.shape[2:4])
        ds = (p * (dp - delta[..., rows].unsqueeze(-1))).masked_fill(dead, 0)
        ds, p = ds.flatten(2, 3), p.flatten(2, 3)  # query heads that share a kv head add up
        dq[..., rows, :] = scale * (ds @ k).unflatten(2, q_block.shape[2:4])
        dk += scale * (ds.mT @ q_block.flatten(2, 3))
        dv += p.mT @ do_block.flatten(2, 3)
        dbias += ds.sum(2)

    return (
        like(query, zero_unless(live, dq.flatten(1, 2))),
        like(key, zero_unless(k_selected, dk)),
        like(value, zero_unless(k_selected, dv)),
        dbias.masked_fill(~k_selected, 0) if key_bias is not None else dbias.new_empty(0),
    )


def selected_rows(t: Tensor, indices: Tensor | None, counts: Tensor | None) -> Tensor:
    """bool (B, H, N) of the tokens of t that the indices name."""
    shape = t.shape[:3]
    if indices is None or counts is None:
        return torch.ones(shape, dtype=torch.bool, device=t.device)
    return TokenIndex(indices, counts).to_mask().expand(shape)


def selected_keys(
    key: Tensor, indices: Tensor | None, counts: Tensor | None, key_bias: Tensor | None
) -> Tensor:
    """The same for keys, without those whose bias is -inf."""
    selected = selected_rows(key, indices, counts)
    return selected if key_bias is None else selected & (key_bias != -torch.inf)


def zero_unless(selected: Tensor, t: Tensor) -> Tensor:
    """t in the accumulation dtype, with zeros in place of the tokens that are not selected."""
    return t.to(accumulation_dtype(t.dtype)).masked_fill(~selected.unsqueeze(-1), 0)


def grouped(t: Tensor, kv_heads: int) -> Tensor:
    """(B, Hq, N, D) as (B, Hkv, Hq // Hkv, N, D): the query heads of each kv head side by side."""
    return t.unflatten(1, (kv_heads, t.shape[1] // max(kv_heads, 1)))


def row_blocks(q: Tensor, k: Tensor) -> list[slice]:
    """Blocks of query rows whose scores stay below MAX_BLOCK_SCORES, at least one row each."""
    batch, kv_heads, group, rows, _ = q.shape
    step = max(1, MAX_BLOCK_SCORES // max(1, batch * kv_heads * group * k.shape[2]))
    return [slice(start, start + step) for start in range(0, rows, step)]


def block_scores(
    q_block: Tensor, k: Tensor, k_selected: Tensor, key_bias: Tensor | None, scale: float
) -> Tensor:
    """(B, Hkv, G, rows, Nk); the group rides along as more rows, so that k is not repeated."""
    scores = scale * (q_block.flatten(2, 3) @ k.mT).unflatten(2, q_block.shape[2:4])
    if key_bias is not None:
        scores = scores + key_bias[:, :, None, None, :]
    return scores.masked_fill(~k_selected[:, :, None, None, :], -torch.inf)


def probabilities(scores: Tensor) -> Tensor:
    """The softmax of each row, and 0 for the rows that see no key, where all scores are -inf."""
    return scores.softmax(-1).masked_fill((scores == -torch.inf).all(-1, keepdim=True), 0)


def like(t: Tensor, result: Tensor) -> Tensor:
    return empty_result(t).copy_(result)


_LIBRARY = torch.library.Library("maskattn", "FRAGMENT")
for _name, _function in (("select_tokens", select_tokens), ("fwd", fwd), ("bwd", bwd)):
    _LIBRARY.define(f"reference_{_name}{SCHEMAS[_name]}")
    _LIBRARY.impl(f"reference_{_name}", _function, "CompositeExplicitAutograd")
