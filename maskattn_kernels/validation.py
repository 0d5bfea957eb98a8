# SPDX-License-Identifier: BSD-3-Clause
"""The one place where the arguments of a call are validated.

Plain ifs on cheap attributes, because calls pay for them; messages are made on failure only. Each
names the argument, what was expected and what came.
"""

import math
import numbers
from typing import Any

import torch
from torch import Tensor

from maskattn_kernels.backends.base import accumulation_dtype
from maskattn_kernels.problem import MAX_HEAD_DIM, Problem
from maskattn_kernels.token_index import TokenIndex, check_mask

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


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
    sizes = (batch, heads, kv_heads, query_len, key_len, head_dim)
    gradients = wants_gradients(query, key, value, key_bias)
    problem = Problem(*sizes, dtype, device.type, gradients)
    return problem, _checked_scale(scale, problem)


def wants_gradients(*inputs: Tensor | None) -> bool:
    """Whether autograd may ask for gradients of these inputs."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs)


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
