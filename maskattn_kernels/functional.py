# SPDX-License-Identifier: BSD-3-Clause
"""The public functions and their contract: the one place where a call is validated."""

import math
import numbers
from typing import Any, Literal, overload

import torch
from torch import Tensor

from maskattn_kernels import ops
from maskattn_kernels.backends import by_name, choose
from maskattn_kernels.backends.base import accumulation_dtype
from maskattn_kernels.biases import absolute_lse, relative_bias
from maskattn_kernels.problem import MAX_HEAD_DIM, Problem
from maskattn_kernels.token_index import TokenIndex, check_mask, with_heads
from maskattn_kernels.torch_compat import any_autocast_enabled, has_autocast

__all__ = ["masked_attention"]

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


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
    if backend is None and key_bias is None:
        results = _short_way(query, key, value, key_mask, query_mask, scale, enable_gqa)
        if results is not None:
            return results if return_lse else results[0]
    query, key, value = autocast(query, key, value)
    problem, scale = validated(query, key, value, key_mask, query_mask, key_bias, scale, enable_gqa)
    chosen = choose(problem, backend).name
    key_tokens = _selection(key_mask)
    query_tokens = key_tokens if query_mask is key_mask else _selection(query_mask)
    level = None
    if key_bias is not None:
        key_bias, level = relative_bias(with_heads(key_bias), key_tokens, query.dtype)
        key_bias = key_bias.expand(key.shape[:3])
    out, lse = ops.attention(chosen, query, key, value, query_tokens, key_tokens, key_bias, scale)
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
    scale: Any,
    enable_gqa: Any,
) -> tuple[Tensor, Tensor] | None:
    """A plain call on the CPU without a gradient, in a third of the overhead.

    The op checks shapes and dtypes itself. None if the call is not that plain or the op refuses it:
    then the long way runs it, or raises with the names of the user's arguments.
    """
    infer = ops.short_way()
    if (
        infer is None
        or not all(_is_plain(t) and t.dim() == 4 for t in (query, key, value))
        or not all(m is None or _is_plain(m) for m in (key_mask, query_mask))
        or (query.shape[1] != key.shape[1] and enable_gqa is not True)
        or scale is not None
        or query.shape[3] == 0
        or any_autocast_enabled()
    ):
        return None
    key_tokens = _selection(key_mask)
    query_tokens = key_tokens if query_mask is key_mask else _selection(query_mask)
    try:
        scale = default_scale(query.shape[3])
        return infer(query, key, value, query_tokens, key_tokens, None, scale)
    except RuntimeError:
        return None


def _is_plain(t: Any) -> bool:
    return type(t) is Tensor and t.is_cpu and not t.is_nested


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


# Validation. Plain ifs on cheap attributes, because every call pays for them; messages are made on
# failure only. Each names the argument, what was expected and what came.


def validated(
    query: Any,
    key: Any,
    value: Any,
    key_mask: Any,
    query_mask: Any,
    key_bias: Any,
    scale: Any,
    enable_gqa: Any,
) -> tuple[Problem, float]:
    """The Problem and the scale of a call whose arguments fit together."""
    _check_qkv("query", query)
    _check_qkv("key", key)
    _check_qkv("value", value)
    batch, heads, query_len, head_dim = query.shape
    kv_batch, kv_heads, key_len, key_dim = key.shape
    dtype, device = query.dtype, query.device
    if dtype not in DTYPES:
        raise TypeError(f"query: expected dtype float32, bfloat16, float16 or float64, got {dtype}")
    if key.dtype is not dtype:
        raise TypeError(f"key: expected query's dtype {dtype}, got {key.dtype}")
    if value.dtype is not dtype:
        raise TypeError(f"value: expected query's dtype {dtype}, got {value.dtype}")
    if key.device != device:
        raise ValueError(f"key: expected query's device {device}, got {key.device}")
    if value.device != device:
        raise ValueError(f"value: expected query's device {device}, got {value.device}")
    if head_dim > MAX_HEAD_DIM:
        raise ValueError(
            f"query: expected head_dim (last size) up to {MAX_HEAD_DIM}, got {head_dim}"
        )
    if kv_batch != batch or key_dim != head_dim:
        expected = f"({batch}, Hkv, Nk, {head_dim}), batch and head_dim of query"
        raise ValueError(f"key: expected shape {expected}, got {tuple(key.shape)}")
    if value.shape != key.shape:
        raise ValueError(
            f"value: expected key's shape {tuple(key.shape)}, got {tuple(value.shape)}"
        )
    if heads != kv_heads:
        _check_gqa(heads, kv_heads, enable_gqa)
    if key_mask is not None:
        check_selection("key_mask", key_mask, batch, kv_heads, key_len, device)
    same_selection = query_mask is key_mask and heads == kv_heads and query_len == key_len
    if query_mask is not None and not same_selection:
        check_selection("query_mask", query_mask, batch, heads, query_len, device)
    if key_bias is not None:
        _check_key_bias(key_bias, batch, kv_heads, key_len, device)
    problem = Problem(batch, heads, kv_heads, query_len, key_len, head_dim, dtype, device.type)
    return problem, _checked_scale(scale, problem)


def _check_dense(name: str, t: Any) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(t).__name__}")
    if t.layout is not torch.strided or t.is_nested:
        kind = "nested" if t.is_nested else str(t.layout)
        raise NotImplementedError(f"{name}: expected a dense tensor, got a {kind} one")


def _check_qkv(name: str, t: Any) -> None:
    _check_dense(name, t)
    if t.dim() != 4:
        raise ValueError(f"{name}: expected shape (B, H, N, D), got {tuple(t.shape)}")


def _check_gqa(heads: int, kv_heads: int, enable_gqa: Any) -> None:
    if not enable_gqa:
        raise ValueError(
            f"key: expected {heads} heads as query, got {kv_heads}; enable_gqa=True allows fewer"
        )
    if kv_heads == 0 or heads % kv_heads:
        raise ValueError(
            f"query: expected a number of heads that is a multiple of key's {kv_heads}, got {heads}"
        )


def check_selection(
    name: str,
    mask: Any,
    batch: int,
    heads: int,
    length: int,
    device: torch.device,
    owner: str = "query",
) -> None:
    """Raises unless `mask` is a mask, or a TokenIndex, of one token axis, on `owner`'s device."""
    if isinstance(mask, TokenIndex):
        indices, counts = mask
        _check_dense(f"{name}.indices", indices)
        _check_dense(f"{name}.counts", counts)
        for field, t in (("indices", indices), ("counts", counts)):
            if t.dtype is not torch.int32:
                raise TypeError(f"{name}.{field}: expected dtype torch.int32, got {t.dtype}")
            if t.device != device:
                raise ValueError(
                    f"{name}.{field}: expected {owner}'s device {device}, got {t.device}"
                )
        if indices.dim() != 3:
            shape = tuple(indices.shape)
            raise ValueError(f"{name}.indices: expected shape (B, H, N), got {shape}")
        if counts.shape != indices.shape[:2]:
            expected, came = tuple(indices.shape[:2]), tuple(counts.shape)
            raise ValueError(f"{name}.counts: expected shape {expected} as indices, got {came}")
        per_token, name = indices, f"{name}.indices"
    else:
        check_mask(name, mask)
        if mask.device != device:
            raise ValueError(f"{name}: expected {owner}'s device {device}, got {mask.device}")
        per_token = mask
    _check_per_token(name, per_token, batch, heads, length)


def _check_key_bias(
    key_bias: Any, batch: int, kv_heads: int, key_len: int, device: torch.device
) -> None:
    _check_dense("key_bias", key_bias)
    if not key_bias.is_floating_point():
        raise TypeError(f"key_bias: expected a floating dtype, got {key_bias.dtype}")
    if key_bias.device != device:
        raise ValueError(f"key_bias: expected query's device {device}, got {key_bias.device}")
    if key_bias.dim() != 2 and key_bias.dim() != 3:
        shape = tuple(key_bias.shape)
        raise ValueError(f"key_bias: expected shape (B, Nk) or (B, Hkv, Nk), got {shape}")
    _check_per_token("key_bias", key_bias, batch, kv_heads, key_len)


def _check_per_token(name: str, t: Tensor, batch: int, heads: int, length: int) -> None:
    """(B, N) or (B, H, N), with B and H possibly 1."""
    shape = t.shape
    if (
        shape[-1] != length
        or (shape[0] != batch and shape[0] != 1)
        or (len(shape) == 3 and shape[1] != heads and shape[1] != 1)
    ):
        raise ValueError(
            f"{name}: expected shape ({batch} or 1, {length}) or "
            f"({batch} or 1, {heads} or 1, {length}), got {tuple(shape)}"
        )


def default_scale(head_dim: int) -> float:
    """1 / sqrt(D), by the one expression that all ways through the code use."""
    return 1.0 / math.sqrt(head_dim) if head_dim else 1.0


def _checked_scale(scale: Any, problem: Problem) -> float:
    if scale is None:
        return default_scale(problem.head_dim)
    if isinstance(scale, bool) or not isinstance(scale, (numbers.Real, torch.SymFloat)):
        raise TypeError(f"scale: expected a number or None, got {type(scale).__name__}")
    try:
        number = float(scale)  # before it is compared: NumPy's narrow numbers overflow
    except OverflowError:
        number = math.inf
    limit = torch.finfo(accumulation_dtype(problem.dtype)).max
    if not -limit <= number <= limit:  # neither does NaN pass
        up_to = f" up to {limit:.3g}" if math.isfinite(number) else ""
        raise ValueError(f"scale: expected a finite number{up_to}, got {scale}")
    return number
