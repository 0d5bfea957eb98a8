# SPDX-License-Identifier: BSD-3-Clause
"""What programs that share the work of a block have left in a workspace, brought together in their
order: bitwise repeatable. Ownership of rows and zeros is as in `triton_index`."""

import triton
import triton.language as tl

from maskattn_kernels.backends.triton_forward import LOG2E
from maskattn_kernels.backends.triton_index import (
    count_of,
    selected_rows,
    store_rows,
    tile_mask,
    unselected_rows,
)


@triton.jit(do_not_specialize=["batch_heads", "heads", "nq"])
def combine_kernel(
    part_out,  # (SPLITS, B, Hq, Nq, D) float32, by place in the index
    part_lse,  # (SPLITS, B, Hq, Nq)
    out,
    lse,
    query_index,
    query_counts,
    out_strides,
    query_index_strides,
    batch_heads,
    heads,
    nq,
    HAS_QUERY_INDEX: tl.constexpr,
    SPLITS: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """The shares of SPLITS programs weighed by exp(lse), in their order."""
    blocks = tl.cdiv(nq, BLOCK_M)
    pid = tl.program_id(0)
    first, bh = (pid % blocks) * BLOCK_M, pid // blocks
    b, h = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    columns = tl.arange(0, D_PAD)
    if HAS_QUERY_INDEX:
        query_index += b * query_index_strides[0] + h * query_index_strides[1]
    out += b * out_strides[0] + h * out_strides[1]
    lse += bh.to(tl.int64) * nq
    part_lse += bh.to(tl.int64) * nq
    part_out += bh.to(tl.int64) * nq * D
    part = nq.to(tl.int64) * batch_heads

    query_count = count_of(query_counts, query_index_strides, b, h, nq, HAS_QUERY_INDEX)
    if HAS_QUERY_INDEX:
        rows, zero = unselected_rows(query_index, query_count, first, nq, BLOCK_M)
        nothing = tl.zeros((BLOCK_M, D_PAD), tl.float32)
        mask = tile_mask(zero, columns, D, D_PAD)
        store_rows(out, rows, out_strides, columns, nothing, mask)
        tl.store(lse + rows, tl.full((BLOCK_M,), float("-inf"), tl.float32), mask=zero)

    if first < query_count:
        places = first + tl.arange(0, BLOCK_M)
        rows, counts = selected_rows(query_index, places, query_count, nq, HAS_QUERY_INDEX)
        mask = tile_mask(counts, columns, D, D_PAD)
        m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        for split in range(SPLITS):
            m = tl.maximum(m, tl.load(part_lse + split * part + places, mask=counts, other=0.0))
        level = tl.where(m == float("-inf"), 0.0, m)
        total = tl.zeros((BLOCK_M,), tl.float32)
        acc = tl.zeros((BLOCK_M, D_PAD), tl.float32)
        for split in range(SPLITS):
            share = tl.load(part_lse + split * part + places, mask=counts, other=0.0)
            weight = tl.exp2((share - level) * LOG2E)
            tile = part_out + split * part * D + places.to(tl.int64)[:, None] * D
            acc += weight[:, None] * tl.load(tile + columns[None, :], mask=mask, other=0.0)
            total += weight
        total = tl.where(total == 0.0, 1.0, total)
        acc = acc / total[:, None]
        store_rows(out, rows, out_strides, columns, acc, mask)
        tl.store(lse + rows, m + tl.log(total), mask=counts)


@triton.jit(do_not_specialize=["batch_heads", "kv_heads", "nk"])
def combine_keys_kernel(
    part_dk,  # (SPLITS, B, Hkv, Nk, D) float32, by place in the index
    part_dv,
    part_dbias,  # (SPLITS, B, Hkv, Nk)
    dk,
    dv,
    dbias,
    key_index,
    key_counts,
    dk_strides,
    dv_strides,
    key_index_strides,
    batch_heads,  # B * Hkv
    kv_heads,
    nk,
    HAS_KEY_INDEX: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SPLITS: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The sums of SPLITS programs added up in their order."""
    blocks = tl.cdiv(nk, BLOCK_N)
    pid = tl.program_id(0)
    first, bh = (pid % blocks) * BLOCK_N, pid // blocks
    b, h = (bh // kv_heads).to(tl.int64), (bh % kv_heads).to(tl.int64)
    columns = tl.arange(0, D_PAD)
    if HAS_KEY_INDEX:
        key_index += b * key_index_strides[0] + h * key_index_strides[1]
    dk += b * dk_strides[0] + h * dk_strides[1]
    dv += b * dv_strides[0] + h * dv_strides[1]
    of_head = bh.to(tl.int64) * nk
    part = nk.to(tl.int64) * batch_heads
    if HAS_BIAS:
        dbias += of_head

    key_count = count_of(key_counts, key_index_strides, b, h, nk, HAS_KEY_INDEX)
    if HAS_KEY_INDEX:
        rows, zero = unselected_rows(key_index, key_count, first, nk, BLOCK_N)
        nothing = tl.zeros((BLOCK_N, D_PAD), tl.float32)
        mask = tile_mask(zero, columns, D, D_PAD)
        store_rows(dk, rows, dk_strides, columns, nothing, mask)
        store_rows(dv, rows, dv_strides, columns, nothing, mask)
        if HAS_BIAS:
            tl.store(dbias + rows, tl.zeros((BLOCK_N,), tl.float32), mask=zero)

    if first < key_count:
        places = first + tl.arange(0, BLOCK_N)
        keys, is_key = selected_rows(key_index, places, key_count, nk, HAS_KEY_INDEX)
        mask = tile_mask(is_key, columns, D, D_PAD)
        tile = (of_head + places)[:, None] * D + columns[None, :]
        dk_tile = tl.zeros((BLOCK_N, D_PAD), tl.float32)
        dv_tile = tl.zeros((BLOCK_N, D_PAD), tl.float32)
        dbias_tile = tl.zeros((BLOCK_N,), tl.float32)
        for split in range(SPLITS):
            dk_tile += tl.load(part_dk + split * part * D + tile, mask=mask, other=0.0)
            dv_tile += tl.load(part_dv + split * part * D + tile, mask=mask, other=0.0)
            if HAS_BIAS:
                place = part_dbias + split * part + of_head + places
                dbias_tile += tl.load(place, mask=is_key, other=0.0)
        store_rows(dk, keys, dk_strides, columns, dk_tile, mask)
        store_rows(dv, keys, dv_strides, columns, dv_tile, mask)
        if HAS_BIAS:
            tl.store(dbias + keys, dbias_tile, mask=is_key)
