# SPDX-License-Identifier: BSD-3-Clause
"""The host side of the Triton kernels: results, workspace, grids, launches.

Nothing here looks at what a tensor holds. Grids and split numbers come from sizes, which bound the
counts that the kernels read on the device; so a call never waits for the device, and a CUDA graph
captured with one mask is right for every other. Grids have one dimension, for the others end at
65,535 programs. Triton launches on the current stream; the guard makes that one of the tensors'
device.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from maskattn_kernels.backends import tuning
from maskattn_kernels.backends.arguments import check_backward, check_forward, check_tensor
from maskattn_kernels.backends.base import empty_result
from maskattn_kernels.backends.triton_backward import delta_kernel, dkdv_kernel, dq_kernel
from maskattn_kernels.backends.triton_forward import LOG2E, combine_kernel, fwd_kernel
from maskattn_kernels.backends.triton_index import select_tokens_kernel

INTERPRETED = not isinstance(fwd_kernel, triton.runtime.JITFunction)
# What one program of the small kernels owns: tokens of a mask, numbers of a tile.
SELECT_BLOCK = 64 if INTERPRETED else 1024
TILE_NUMBERS = 1024 if INTERPRETED else 8192
# Tokens of sequences so short that the forward pass reads masks itself, and splits no keys.
SHORT = 32 if INTERPRETED else 256
# Asked for by name, because Triton warns that its default will change.
OPTIONS = {"enable_fp_fusion": True}


class Chip(NamedTuple):
    arch: str
    processors: int
    shared_memory: int | None  # bytes that one program may have


class Selection(NamedTuple):
    """A token index as the kernels take it, or a short mask; all tokens where there is none."""

    indices: Tensor | None  # or the bytes of a mask, which has no counts
    counts: Tensor | None
    # indices: batch, head; counts: batch, head; or mask: batch, head, token. 0 = one serves all.
    strides: tuple[int, ...]


def select_tokens(mask: Tensor) -> tuple[Tensor, Tensor]:
    check_tensor("mask", mask, mask, torch.bool, (-1, -1, -1))
    b, h, n = mask.shape
    indices = mask.new_empty((b, h, n), dtype=torch.int32)
    counts = mask.new_empty((b, h), dtype=torch.int32)
    if indices.numel() == 0:
        return indices, counts.zero_()
    as_bytes = mask.view(torch.uint8)  # a bool may hold any byte; nonzero is True
    block = min(SELECT_BLOCK, max(16, triton.next_power_of_2(n)))
    with _device_of(mask):
        select_tokens_kernel[(b * h,)](
            as_bytes, indices, counts, mask.stride(), h, n, BLOCK=block, **OPTIONS
        )
    return indices, counts


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
    queries, keys = _selection(query_indices, query_counts), _selection(key_indices, key_counts)
    return _forward(query, key, value, queries, keys, key_bias, scale, short=0)


def infer(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    key_bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    check_forward(query, key, value, None, None, None, None, key_bias)
    for name, mask, of in (("query_mask", query_mask, query), ("key_mask", key_mask, key)):
        if mask is not None:
            check_tensor(name, mask, query, torch.bool, of.shape[:3], broadcast=2)
    if max(query.shape[2], key.shape[2]) <= SHORT:
        queries, keys = _mask(query_mask), _mask(key_mask)
        return _forward(query, key, value, queries, keys, key_bias, scale, short=SHORT)
    keys = _listed(key_mask)
    queries = keys if query_mask is key_mask else _listed(query_mask)
    return _forward(query, key, value, queries, keys, key_bias, scale, short=0)


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    queries: Selection,
    keys: Selection,
    key_bias: Tensor | None,
    scale: float,
    *,
    short: int,
) -> tuple[Tensor, Tensor]:
    b, hq, nq, d = query.shape
    hkv, nk = key.shape[1:3]
    out = empty_result(query)
    lse = query.new_empty((b, hq, nq), dtype=torch.float32)
    if out.numel() == 0 or nk == 0:
        return out.zero_(), lse.fill_(-torch.inf)
    q, k, v = _rows(query), _rows(key), _rows(value)
    chip = _chip(query.device)
    # With few keys there is no loop to speak of: many small tiles, and none of them shared.
    config = _config("fwd", query, b * hq * nq if nk > SHORT else 0, chip)
    programs = b * hq * triton.cdiv(nq, config.block_m)
    splits = 1
    if nk > SHORT:
        splits = tuning.key_splits(programs, nk, config.block_n, chip.processors)

    target, target_lse, target_strides = out, lse, out.stride()[:3]
    if splits > 1:
        workspace = query.new_empty(splits * b * hq * nq * (d + 1), dtype=torch.float32)
        target_lse, target = workspace.split([splits * b * hq * nq, splits * b * hq * nq * d])
        target_strides = (hq * nq * d, nq * d, d)
    with _device_of(query):
        fwd_kernel[(programs * splits,)](
            q, k, v, key_bias, target, target_lse,
            queries.indices, queries.counts, keys.indices, keys.counts,
            q.stride()[:3], k.stride()[:3], v.stride()[:3], _strides(key_bias), target_strides,
            queries.strides, keys.strides,
            b * hq, hq, hq // hkv, nq, nk, scale * _unit(query),
            HAS_QUERY_INDEX=queries.indices is not None, HAS_KEY_INDEX=keys.indices is not None,
            HAS_BIAS=key_bias is not None, SPLITS=splits, SHORT=short,
            **_numerics(query), **_tile(config), **OPTIONS,
        )  # fmt: skip
        if splits > 1:
            block = small_block(d)
            combine_kernel[(b * hq * triton.cdiv(nq, block),)](
                target, target_lse, out, lse, queries.indices, queries.counts,
                out.stride()[:3], queries.strides, b * hq, hq, nq,
                HAS_QUERY_INDEX=queries.indices is not None, SPLITS=splits,
                D=d, D_PAD=tuning.head_dim_pad(d), BLOCK_M=block, **OPTIONS,
            )  # fmt: skip
    return out, lse


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
    b, hq, nq, d = query.shape
    hkv, nk = key.shape[1:3]
    dq, dk, dv = empty_result(query), empty_result(key), empty_result(value)
    dbias = key.new_empty((b, hkv, nk) if key_bias is not None else (0,), dtype=torch.float32)
    if dq.numel() == 0 or dk.numel() == 0:
        return dq.zero_(), dk.zero_(), dv.zero_(), dbias.zero_()
    q, k, v, dout, out = _rows(query), _rows(key), _rows(value), _rows(dout), _rows(out)
    queries, keys = _selection(query_indices, query_counts), _selection(key_indices, key_counts)
    has_queries, has_keys = queries.indices is not None, keys.indices is not None
    chip = _chip(query.device)
    numerics, unit = _numerics(query), _unit(query)
    deltas, lses = query.new_empty(2, b, hq, nq, dtype=torch.float32)

    with _device_of(query):
        block = small_block(d)
        delta_kernel[(b * hq * triton.cdiv(nq, block),)](
            dout, dlse, out, lse.contiguous(), deltas, lses, queries.indices, queries.counts,
            dout.stride()[:3], _strides(dlse), out.stride()[:3], queries.strides,
            hq, nq, HAS_QUERY_INDEX=has_queries, HAS_DLSE=dlse is not None,
            UNIT=unit, D=d, D_PAD=tuning.head_dim_pad(d), BLOCK_M=block, **OPTIONS,
        )  # fmt: skip
        config = _config("dkdv", key, b * hkv * nk, chip)
        dkdv_kernel[(b * hkv * triton.cdiv(nk, config.block_n),)](
            dout, q, k, v, key_bias, deltas, lses, dk, dv, dbias,
            queries.indices, queries.counts, keys.indices, keys.counts,
            dout.stride()[:3], q.stride()[:3], k.stride()[:3], v.stride()[:3], _strides(key_bias),
            dk.stride()[:3], dv.stride()[:3], queries.strides, keys.strides,
            hkv, hq // hkv, nq, nk, scale, scale * unit,
            HAS_QUERY_INDEX=has_queries, HAS_KEY_INDEX=has_keys, HAS_BIAS=key_bias is not None,
            **numerics, **_tile(config), **OPTIONS,
        )  # fmt: skip
        config = _config("dq", query, b * hq * nq, chip)
        dq_kernel[(b * hq * triton.cdiv(nq, config.block_m),)](
            dout, q, k, v, key_bias, deltas, lses, dq,
            queries.indices, queries.counts, keys.indices, keys.counts,
            dout.stride()[:3], q.stride()[:3], k.stride()[:3], v.stride()[:3], _strides(key_bias),
            dq.stride()[:3], queries.strides, keys.strides,
            hq, hq // hkv, nq, nk, scale, scale * unit,
            HAS_QUERY_INDEX=has_queries, HAS_KEY_INDEX=has_keys, HAS_BIAS=key_bias is not None,
            **numerics, **_tile(config), **OPTIONS,
        )  # fmt: skip
    return dq, dk, dv, dbias


def _rows(t: Tensor) -> Tensor:
    """t, copied only where a token's features do not lie side by side."""
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def _strides(per_token: Tensor | None) -> tuple[int, ...]:
    return per_token.stride() if per_token is not None else (0, 0, 0)


def _selection(indices: Tensor | None, counts: Tensor | None) -> Selection:
    if indices is None or counts is None:
        return Selection(None, None, (0, 0, 0, 0))
    if indices.stride(-1) != 1:
        indices = indices.contiguous()
    strides = [
        t.stride(dim) if t.shape[dim] > 1 else 0 for t in (indices, counts) for dim in (0, 1)
    ]
    return Selection(indices, counts, tuple(strides))


def _listed(mask: Tensor | None) -> Selection:
    return _selection(None, None) if mask is None else _selection(*select_tokens(mask))


def _mask(mask: Tensor | None) -> Selection:
    if mask is None:
        return _selection(None, None)
    b, h = (mask.stride(dim) if mask.shape[dim] > 1 else 0 for dim in (0, 1))
    return Selection(mask.view(torch.uint8), None, (b, h, mask.stride(2), 0))


def _unit(t: Tensor) -> float:
    """The unit of scores, see `triton_forward`."""
    return 1.0 if t.dtype is torch.float32 else LOG2E.value


def _numerics(t: Tensor) -> dict[str, Any]:
    d = t.shape[-1]
    return {
        "D": d, "D_PAD": tuning.head_dim_pad(d), "UNIT": _unit(t), "PRECISION": _precision(t.dtype),
    }  # fmt: skip


def _precision(dtype: torch.dtype) -> str:
    """How `tl.dot` multiplies: float32 truly, unless torch's own products may use TF32."""
    if INTERPRETED:
        return "widened" if dtype is torch.bfloat16 else "ieee"
    if dtype is not torch.float32 or torch.version.hip:  # not every AMD chip has a TF32
        return "ieee"
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def _tile(config: tuning.Config) -> dict[str, int]:
    return {
        "BLOCK_M": config.block_m, "BLOCK_N": config.block_n,
        "num_warps": config.warps, "num_stages": config.stages,
    }  # fmt: skip


def _config(kernel: str, t: Tensor, rows: int, chip: Chip) -> tuning.Config:
    bits = 8 * t.element_size()
    return tuning.choose_config(
        kernel, chip.arch, bits, t.shape[-1], rows, chip.processors, chip.shared_memory
    )


def small_block(head_dim: int) -> int:
    """Rows of a tile of TILE_NUMBERS numbers."""
    return max(16, TILE_NUMBERS // tuning.head_dim_pad(head_dim))


def _chip(device: torch.device) -> Chip:
    return Chip("interpreter", 8, None) if INTERPRETED else _gpu(device.index)


@cache
def _gpu(index: int) -> Chip:
    facts = torch.cuda.get_device_properties(index)
    if torch.version.hip:
        arch = facts.gcnArchName.split(":")[0]
        return Chip(arch, facts.multi_processor_count, facts.shared_memory_per_block)
    arch = f"sm_{facts.major}{facts.minor}"
    shared_memory = getattr(facts, "shared_memory_per_block_optin", None)  # no type stub has it
    return Chip(arch, facts.multi_processor_count, shared_memory)


def _device_of(t: Tensor) -> AbstractContextManager:
    return torch.cuda.device(t.device) if t.is_cuda else nullcontext()
