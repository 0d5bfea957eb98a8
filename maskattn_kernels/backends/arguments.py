# SPDX-License-Identifier: BSD-3-Clause
"""The arguments of an op, checked: for the backends in Python, as csrc/arguments.h for the others.

`masked_attention` validates a call before it comes here. These checks keep a direct call of
`torch.ops.maskattn.*` inside its tensors, so they look at shapes, dtypes, devices and storages, and
wait for no device. What an index holds is looked at by `check_lists` only, on the CPU.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from maskattn_kernels.backends.base import accumulation_dtype
from maskattn_kernels.problem import MAX_HEAD_DIM


def check_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_indices: Tensor | None,
    query_counts: Tensor | None,
    key_indices: Tensor | None,
    key_counts: Tensor | None,
    key_bias: Tensor | None,
) -> None:
    """Raises ValueError or TypeError unless the arguments of X_fwd fit together."""
    for name, t in (("query", query), ("key", key), ("value", value)):
        check_tensor(name, t, query, query.dtype, (-1, -1, -1, -1))
    batch, heads, query_len, head_dim = query.shape
    kv_heads, key_len = key.shape[1:3]
    if head_dim > MAX_HEAD_DIM:
        raise ValueError(f"query: expected head_dim up to {MAX_HEAD_DIM}, got {head_dim}")
    if max(query_len, key_len) >= 2**31:
        raise ValueError(f"query: expected lengths below 2^31, got {query_len} and {key_len}")
    _check_shape("key", key, (batch, -1, -1, head_dim))
    _check_shape("value", value, key.shape)
    if heads % kv_heads if kv_heads else heads:
        raise ValueError(f"query: expected a multiple of key's {kv_heads} heads, got {heads}")
    check_index("query_mask", query_indices, query_counts, query, heads, query_len)
    check_index("key_mask", key_indices, key_counts, query, kv_heads, key_len)
    if key_bias is not None:
        dtype = accumulation_dtype(query.dtype)
        check_tensor("key_bias", key_bias, query, dtype, (batch, kv_heads, key_len))


def check_backward(
    dout: Tensor, dlse: Tensor | None, out: Tensor, lse: Tensor, query: Tensor
) -> None:
    """The same for what X_bwd takes besides."""
    dtype = accumulation_dtype(query.dtype)
    check_tensor("dout", dout, query, query.dtype, query.shape)
    check_tensor("out", out, query, query.dtype, query.shape)
    check_tensor("lse", lse, query, dtype, query.shape[:3])
    if dlse is not None:
        check_tensor("dlse", dlse, query, dtype, query.shape[:3])


def check_index(
    name: str,
    indices: Tensor | None,
    counts: Tensor | None,
    query: Tensor,
    heads: int,
    length: int,
) -> None:
    """Raises unless indices and counts are lists of tokens below `length`, or both None."""
    if indices is None or counts is None:
        if indices is not counts:
            raise ValueError(f"{name}: expected indices and counts or neither, got one of them")
        return
    shape = (query.shape[0], heads, length)
    check_tensor(f"{name}.indices", indices, query, torch.int32, shape, broadcast=2)
    check_tensor(f"{name}.counts", counts, query, torch.int32, shape[:2], broadcast=2)


def check_lists(name: str, t: Tensor, indices: Tensor | None, counts: Tensor | None) -> None:
    """Raises ValueError unless the lists of t's tokens are ascending and inside the sequence.

    On other devices than the CPU it would have to wait: there, it does nothing.
    """
    if indices is None or counts is None or not indices.is_cpu or 0 in t.shape[:3]:
        return
    length = indices.shape[-1]
    if not 0 <= counts.min() <= counts.max() <= length:
        wrong = counts.min() if counts.min() < 0 else counts.max()
        raise ValueError(f"{name}.counts: expected 0 to {length}, got {wrong}")
    before = torch.cat([indices.new_full((*indices.shape[:2], 1), -1), indices[..., :-1]], -1)
    fits = (before < indices) & (indices < length)
    past_count = torch.arange(length) >= counts.unsqueeze(-1)
    if not (fits | past_count).all():
        raise ValueError(f"{name}.indices: expected ascending tokens below {length}, got others")


def check_tensor(
    name: str,
    t: Tensor,
    query: Tensor,
    dtype: torch.dtype,
    shape: Sequence[int],
    broadcast: int = 0,
) -> None:
    """Raises unless t has the dtype, the shape, query's device, and all of its memory."""
    if t.dtype is not dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, got {t.dtype}")
    if t.device != query.device:
        raise ValueError(f"{name}: expected query's device {query.device}, got {t.device}")
    _check_shape(name, t, shape, broadcast)
    entries = t.storage_offset() + 1
    for size, stride in zip(t.shape, t.stride(), strict=True):
        if size == 0:
            return
        entries += (size - 1) * stride
    if entries * t.element_size() > t.untyped_storage().nbytes():
        held = t.untyped_storage().nbytes()
        raise ValueError(f"{name}: expected a storage of {entries} entries, got {held} bytes")


def _check_shape(name: str, t: Tensor, shape: Sequence[int], broadcast: int = 0) -> None:
    """-1 stands for any size; the first `broadcast` sizes may be 1."""
    if t.shape == shape:
        return
    fits = t.dim() == len(shape) and all(
        expected in (-1, got) or (got == 1 and d < broadcast)
        for d, (got, expected) in enumerate(zip(t.shape, shape, strict=True))
    )
    if not fits:
        raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(t.shape)}")
