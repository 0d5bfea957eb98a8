# SPDX-License-Identifier: BSD-3-Clause
"""`masked_attention`, its contract, and the way of a call to the ops of a backend."""

from typing import Any, Literal, overload

import torch
from torch import Tensor

from maskattn_kernels import ops
from maskattn_kernels.backends import by_name, choose
from maskattn_kernels.backends.base import accumulation_dtype
from maskattn_kernels.biases import absolute_lse, bias_level, relative_bias
from maskattn_kernels.token_index import TokenIndex, with_heads
from maskattn_kernels.torch_compat import any_autocast_enabled, has_autocast
from maskattn_kernels.validation import default_scale, validated

__all__ = ["masked_attention"]


@overload
def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    key_mask: Tensor | TokenIndex | None = ...,
    query_mask: Tensor | TokenIndex | None = ...,
    key_bias: Tensor | None = ...,
    scale: float | None = ...,
    enable_gqa: bool = ...,
    return_lse: Literal[False] = ...,
    backend: str | None = ...,
) -> Tensor: ...
@overload
def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    key_mask: Tensor | TokenIndex | None = ...,
    query_mask: Tensor | TokenIndex | None = ...,
    key_bias: Tensor | None = ...,
    scale: float | None = ...,
    enable_gqa: bool = ...,
    return_lse: Literal[True],
    backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...
@overload
def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    key_mask: Tensor | TokenIndex | None = ...,
    query_mask: Tensor | TokenIndex | None = ...,
    key_bias: Tensor | None = ...,
    scale: float | None = ...,
    enable_gqa: bool = ...,
    return_lse: bool,
    backend: str | None = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...
def masked_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    key_mask: Tensor | TokenIndex | None = None,
    query_mask: Tensor | TokenIndex | None = None,
    key_bias: Tensor | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of the selected queries over the selected keys, exact, in O(N D) extra memory.

    With both masks drawn over a 3 x 3 score matrix (q = query, k = key selected)::

                 k0  k1  k2
        key_mask  1   0   1
        q0   1    x   .   x      out[0] = softmax over k0, k2
        q1   0    .   .   .      out[1] = 0
        q2   1    x   .   x      out[2] = softmax over k0, k2

    It computes the same as this, without ever making an N x N tensor, and without the work for
    what is not selected::

        attn_mask = key_mask[:, None, None, :]
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=attn_mask)
        out = out.masked_fill(~query_mask[:, None, :, None], 0)

    What a token that is not selected holds (NaN, Inf, anything) changes no bit of any result. A
    query that is not selected, or that sees no key, gives out 0 and lse -inf. Forward and backward
    are bitwise repeatable.

    Args:
        query: `(B, Hq, Nq, D)`, float32, bfloat16 or float16 (float64 on the reference); D up to
            256. Any strides.
        key: `(B, Hkv, Nk, D)`, dtype and device of query.
        value: as key.
        key_mask: bool `(B, Nk)` or `(B, Hkv, Nk)`, True = selected, or the `TokenIndex` of such a
            mask. Sizes of 1 broadcast over batch and heads. None selects all keys.
        query_mask: bool `(B, Nq)` or `(B, Hq, Nq)`, likewise. Give the same object for both masks
            and the tokens are listed once.
        key_bias: floating `(B, Nk)` or `(B, Hkv, Nk)`, sizes of 1 broadcast: added to the scaled
            score of its key; of any size. A key at -inf takes no part, as if it were not selected.
        scale: factor of the scores; None means 1 / sqrt(D).
        enable_gqa: allow Hq to be a multiple of Hkv; query head h reads kv head h // (Hq // Hkv).
        return_lse: also return the log-sum-exp of the scores.
        backend: None for the best one that can run, or its name; see `backends` and `explain`.

    Returns:
        out `(B, Hq, Nq, D)` in query's dtype, laid out in memory as query (tokens or heads first);
        with return_lse, also lse `(B, Hq, Nq)` in float32 (float64 for float64).

    Gradients: in query, key, value and key_bias, also through lse. Those of tokens that are not
    selected are exactly 0. A second derivative and forward-mode derivatives raise
    NotImplementedError.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, device or value does not fit the others.
        NotImplementedError: a sparse or nested tensor; or the backend asked for cannot run this.

    Under autocast query, key and value are cast as for `scaled_dot_product_attention`.

    Example:
        >>> import torch
        >>> from maskattn_kernels import masked_attention
        >>> q, k, v = torch.randn(3, 1, 2, 5, 8).unbind()
        >>> mask = torch.tensor([[True, False, True, True, False]])
        >>> out = masked_attention(q, k, v, key_mask=mask, query_mask=mask)
        >>> out.shape, out[0, :, 1].abs().sum().item()
        (torch.Size([1, 2, 5, 8]), 0.0)
    """
    if backend is None and (key_bias is None or not return_lse):
        results = _short_way(query, key, value, key_mask, query_mask, key_bias, scale, enable_gqa)
        if results is not None:
            return results if return_lse else results[0]
    query, key, value = autocast(query, key, value)
    problem, scale = validated(query, key, value, key_mask, query_mask, key_bias, scale, enable_gqa)
    chosen = choose(problem, backend)
    key_tokens = _selection(key_mask)
    query_tokens = key_tokens if query_mask is key_mask else _selection(query_mask)
    level = None
    if key_bias is not None:
        key_bias = with_heads(key_bias)
        if not chosen.takes_any_bias or key_bias.dtype is not accumulation_dtype(query.dtype):
            key_bias, level = relative_bias(key_bias, key_tokens, query.dtype)
        elif return_lse:
            level = bias_level(key_bias, key_tokens)
        key_bias = key_bias.expand(key.shape[:3])
    out, lse = ops.attention(
        chosen.name, query, key, value, query_tokens, key_tokens, key_bias, scale
    )
    if not return_lse:
        return out
    return out, lse if level is None else absolute_lse(lse, level)


def check_backend(name: str | None) -> None:
    """Raises unless `name` is None or that of a backend."""
    if name is not None:
        by_name(name)


def _short_way(
    query: Any,
    key: Any,
    value: Any,
    key_mask: Any,
    query_mask: Any,
    key_bias: Any,
    scale: Any,
    enable_gqa: Any,
) -> tuple[Tensor, Tensor] | None:
    """A plain call on the CPU, in a third of the overhead; lse is relative to the biases.

    The op checks shapes and dtypes itself. None if the call is not that plain or the op refuses it:
    then the long way runs it, or raises with the names of the user's arguments.
    """
    if (
        not ops.in_plain_code()
        or not (_is_plain(query) and _is_plain(key) and _is_plain(value))
        or not (key_mask is None or _is_plain_selection(key_mask))
        or not (query_mask is key_mask or query_mask is None or _is_plain_selection(query_mask))
        or not (key_bias is None or (_is_plain(key_bias) and key_bias.dtype is torch.float32))
        or scale is not None
        or query.dtype is torch.float64
        or not ops.lists_masks("cpu")
    ):
        return None
    derivative = torch.is_grad_enabled() and (
        query.requires_grad
        or key.requires_grad
        or value.requires_grad
        or (key_bias is not None and key_bias.requires_grad)
    )
    try:
        heads, head_dim = query.shape[1], query.shape[3]
        if head_dim == 0 or (enable_gqa is not True and heads != key.shape[1]):
            return None
        if type(key_mask) is TokenIndex and key_bias is not None:
            if key_bias.dim() not in (2, 3):
                return None
            key_bias = with_heads(key_bias).expand(key.shape[:3])
        tensors = (query, key, value, query_mask, key_mask, key_bias)
        return ops.attention_in_plain_code("cpu", derivative, *tensors, default_scale(head_dim))
    except (RuntimeError, IndexError):
        return None


def _is_plain(t: Any) -> bool:
    return type(t) is Tensor and t.is_cpu


def _is_plain_selection(tokens: Any) -> bool:
    if type(tokens) is not TokenIndex:
        return _is_plain(tokens)
    indices, counts = tokens
    return _is_plain(indices) and _is_plain(counts) and counts.shape == indices.shape[:-1]


def autocast(query: Any, key: Any, value: Any) -> tuple[Any, Any, Any]:
    """The tensors in the dtype that autocast wants, where it is on; not yet validated."""
    if (
        any_autocast_enabled()
        and all(isinstance(t, Tensor) for t in (query, key, value))
        and has_autocast(query.device.type)
        and torch.is_autocast_enabled(query.device.type)
    ):
        query, key, value = ops.autocast_cast(query.device.type, query, key, value)
    return query, key, value


def _selection(mask: Tensor | TokenIndex | None) -> Tensor | TokenIndex | None:
    """A mask with a dimension of heads; the rest as it is."""
    return with_heads(mask) if isinstance(mask, Tensor) else mask
