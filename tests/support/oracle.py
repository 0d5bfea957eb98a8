# SPDX-License-Identifier: BSD-3-Clause
"""What is right, and how far from it a result may be.

`dense_attention` is written independently of the package: dense N x N attention that autograd
differentiates. In float64 it is the truth. In the dtype under test it is eager PyTorch, whose error
sets the limit. `dense_by_lse` is one more eager PyTorch, with the gradients written out from lse
and from the stored out, as every kernel that keeps no N x N matrix must compute them. An error is a
matter of luck with few numbers, so `harness` looks at both under several orders of the tokens.
"""

import torch
from torch import Tensor

FACTORS = {torch.float64: 4, torch.float32: 4, torch.bfloat16: 2, torch.float16: 2}


def dense_scores(
    query: Tensor,
    key: Tensor,
    key_mask: Tensor | None,
    query_mask: Tensor | None,
    key_bias: Tensor | None,
    scale: float | None,
) -> Tensor:
    """(B, Hq, Nq, Nk), -inf where the query or the key is not selected; key has Hq heads too."""
    heads, head_dim = query.shape[1], query.shape[-1]
    scores = (head_dim**-0.5 if scale is None else scale) * (query @ key.mT)
    if key_bias is not None:
        scores = scores + per_head(key_bias, heads)[:, :, None, :].to(scores.dtype)
    allowed = torch.ones_like(scores, dtype=torch.bool)
    if key_mask is not None:
        allowed &= per_head(key_mask, heads)[:, :, None, :]
    if query_mask is not None:
        allowed &= per_head(query_mask, heads)[:, :, :, None]
    return scores.masked_fill(~allowed, -torch.inf)


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, *masks_bias_scale: Tensor | float | None
) -> tuple[Tensor, Tensor]:
    """(out, lse) of the selected tokens; masks and bias as `masked_attention` takes them."""
    group = query.shape[1] // max(key.shape[1], 1)
    key, value = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = dense_scores(query, key, *masks_bias_scale)
    empty = (scores == -torch.inf).all(-1, keepdim=True)
    scores = scores.masked_fill(empty, 0)  # a row of -inf would make NaN gradients
    lse = scores.logsumexp(-1).masked_fill(empty.squeeze(-1), -torch.inf)
    return scores.softmax(-1).masked_fill(empty, 0) @ value, lse


def dense_by_lse(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    query_mask: Tensor | None,
    key_bias: Tensor | None,
    scale: float | None,
    dout: Tensor,
    dlse: Tensor,
) -> tuple[Tensor, ...]:
    """(out, lse, dq, dk, dv, dbias) by formulas in lse and out; dbias has the shape of key_bias.

    Takes and returns the dtype under test; 16-bit tensors are computed with in float32 and stored
    in their dtype, which is what a kernel does.
    """
    dtype, wide = query.dtype, torch.promote_types(query.dtype, torch.float32)
    query, key, value, dout = (t.to(wide) for t in (query, key, value, dout))
    kv_heads, group = key.shape[1], query.shape[1] // max(key.shape[1], 1)
    k, v = key.repeat_interleave(group, 1), value.repeat_interleave(group, 1)
    scores = dense_scores(query, k, key_mask, query_mask, key_bias, scale)
    lse = scores.logsumexp(-1)
    empty = lse == -torch.inf
    p = (scores - lse.unsqueeze(-1)).exp().masked_fill(empty.unsqueeze(-1), 0)
    out = (p @ v).to(dtype)
    delta = (dout * out).sum(-1) - dlse.masked_fill(empty, 0)
    ds = p * (dout @ v.mT - delta.unsqueeze(-1))
    scale = query.shape[-1] ** -0.5 if scale is None else scale

    def per_kv_head(t: Tensor) -> Tensor:
        return t.unflatten(1, (kv_heads, group)).sum(2)

    dq, dk, dv = scale * (ds @ k), per_kv_head(scale * (ds.mT @ query)), per_kv_head(p.mT @ dout)
    results = [out, lse, dq.to(dtype), dk.to(dtype), dv.to(dtype)]
    if key_bias is not None:
        dbias = per_kv_head(ds.sum(2))
        results.append(dbias if key_bias.dim() == 3 else dbias.sum(1))
    return tuple(results)


def per_head(per_token: Tensor, heads: int) -> Tensor:
    """(B, N) or (B, H | 1, N) as (B, heads | 1, N)."""
    if per_token.dim() == 2:
        per_token = per_token.unsqueeze(1)
    repeats = 1 if per_token.shape[1] == 1 else heads // max(per_token.shape[1], 1)
    return per_token.repeat_interleave(repeats, 1)


def limit(truth: Tensor, eager: list[Tensor], dtype: torch.dtype) -> float:
    """The largest error allowed: a multiple of eager PyTorch's own, and a rounding of the truth.

    That rounding is the most that flash-attention's 2 * |truth + 0.3 - 0.3 - truth| can be.
    """
    rounding = torch.finfo(dtype).eps * (0.3 + largest(truth.abs()))
    if dtype is torch.float64:
        rounding *= 64  # the truth has such an error itself
    return FACTORS[dtype] * max(largest((e.double() - truth).abs()) for e in eager) + rounding


def largest(t: Tensor) -> float:
    """The largest finite entry, 0 if there is none."""
    t = t[t.isfinite()]
    return t.max().item() if t.numel() else 0.0


def assert_close(
    name: str, result: Tensor, truth: Tensor, eager: list[Tensor], dtype: torch.dtype
) -> None:
    """Fails unless result is as near to the truth (float64) as `limit` asks."""
    assert result.shape == truth.shape, f"{name}: shape {result.shape}, expected {truth.shape}"
    result = result.double()
    finite = truth.isfinite()
    same = torch.equal(result[~finite], truth[~finite]) and bool(result[finite].isfinite().all())
    assert same, f"{name}: not finite in other places than the truth"
    error, allowed = largest((result - truth).abs()[finite]), limit(truth, eager, dtype)
    assert error <= allowed, f"{name}: error {error:.3g}, allowed {allowed:.3g}"
