# SPDX-License-Identifier: BSD-3-Clause
"""The backward pass, in three or four launches without atomics, hence bitwise repeatable.

    p_ij = exp(s_ij - lse_i)     delta_i = <dout_i, out_i> - dlse_i
    ds_ij = p_ij (<dout_i, v_j> - delta_i)
    dv_j = sum_i p_ij dout_i     dk_j = scale sum_i ds_ij q_i     dbias_j = sum_i ds_ij
    dq_i = scale sum_j ds_ij k_j

- `delta_kernel`: one program owns BLOCK_M selected queries of one head, and writes their delta and
  lse by place in the index, so that the other kernels read both in memory order. A query that sees
  no key has lse -inf; it is written as +inf here, which makes all its p exactly 0.
- `dkdv_kernel`: one program owns BLOCK_N selected keys of one kv head. They stay, the selected
  queries of all heads of the group stream by. Few keys under many queries would leave most of a
  chip idle: then SPLITS programs share the queries, each writes its own sums into a workspace, and
  `combine_keys_kernel` adds them up in their order.
- `dq_kernel`: one program owns BLOCK_M selected queries of one head; the selected keys stream by.

The last two also own the zeros among their block of original rows (`triton_index`). p is computed
again in each, which costs 7 products in place of 5, and saves the atomic additions into dq (the
split is that of Triton's fused-attention tutorial). UNIT is as in `triton_forward`.
"""

import triton
import triton.language as tl

from maskattn_kernels.backends.triton_forward import LOG2E
from maskattn_kernels.backends.triton_index import (
    count_of,
    dot,
    load_rows,
    selected_rows,
    store_rows,
    tile_mask,
    unselected_rows,
)


@triton.jit(do_not_specialize=["batch_heads", "heads", "nq"])
def delta_kernel(
    dout,  # (B, Hq, Nq, D)
    dlse,  # (B, Hq, Nq) float32
    out,
    lse,  # (B, Hq, Nq) float32
    deltas,  # (2, B, Hq, Nq) float32, by place in the index: delta, and lse in units of UNIT
    query_index,
    query_counts,
    dout_strides,
    dlse_strides,
    out_strides,
    lse_strides,
    query_index_strides,
    batch_heads,  # B * Hq
    heads,
    nq,
    HAS_QUERY_INDEX: tl.constexpr,
    HAS_DLSE: tl.constexpr,
    UNIT: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    blocks = tl.cdiv(nq, BLOCK_M)
    pid = tl.program_id(0)
    first, bh = (pid % blocks) * BLOCK_M, pid // blocks
    b, h = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    columns = tl.arange(0, D_PAD)
    if HAS_QUERY_INDEX:
        query_index += b * query_index_strides[0] + h * query_index_strides[1]
    query_count = count_of(query_counts, query_index_strides, b, h, nq, HAS_QUERY_INDEX)
    if first < query_count:
        places = first + tl.arange(0, BLOCK_M)
        rows, counts = selected_rows(query_index, places, query_count, nq, HAS_QUERY_INDEX)
        lse += b * lse_strides[0] + h * lse_strides[1]
        lse_rows = tl.load(lse + rows * lse_strides[2], mask=counts, other=float("-inf"))
        sees_keys = lse_rows != float("-inf")
        mask = tile_mask(sees_keys, columns, D, D_PAD)
        dout += b * dout_strides[0] + h * dout_strides[1]
        out += b * out_strides[0] + h * out_strides[1]
        dout_tile = load_rows(dout, rows, dout_strides, columns, mask)
        out_tile = load_rows(out, rows, out_strides, columns, mask)
        delta = tl.sum(dout_tile.to(tl.float32) * out_tile.to(tl.float32), 1)
        if HAS_DLSE:
            dlse += b * dlse_strides[0] + h * dlse_strides[1]
            delta -= tl.load(dlse + rows * dlse_strides[2], mask=sees_keys, other=0.0)
        target = bh.to(tl.int64) * nq + places
        in_index = places < query_count
        tl.store(deltas + target, delta, mask=in_index)
        lse_units = tl.where(sees_keys, lse_rows * UNIT, float("inf"))
        tl.store(deltas + nq.to(tl.int64) * batch_heads + target, lse_units, mask=in_index)


@triton.jit(do_not_specialize=["batch_heads", "kv_heads", "group", "nq", "nk"])
def dkdv_kernel(
    dout,  # (B, Hq, Nq, D)
    q,  # (B, Hq, Nq, D)
    k,  # (B, Hkv, Nk, D)
    v,  # (B, Hkv, Nk, D)
    key_bias,  # (B, Hkv, Nk) float32
    deltas,  # as delta_kernel writes them
    dk,  # (B, Hkv, Nk, D); with SPLITS > 1 part_dk of combine_keys_kernel, and so on
    dv,
    dbias,  # (B, Hkv, Nk) float32, contiguous
    query_index,
    query_counts,
    key_index,
    key_counts,
    scale,
    score_scale,  # scale * UNIT
    dout_strides,
    q_strides,
    k_strides,
    v_strides,
    bias_strides,
    dk_strides,
    dv_strides,
    query_index_strides,
    key_index_strides,
    batch_heads,  # B * Hq
    kv_heads,
    group,
    nq,
    nk,
    HAS_QUERY_INDEX: tl.constexpr,
    HAS_KEY_INDEX: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SPLITS: tl.constexpr,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    D_READ: tl.constexpr,  # of the rows of dout, q, k and v: D, or more where zeros follow
    D_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    blocks = tl.cdiv(nk, BLOCK_N)
    pid = tl.program_id(0)
    first, split = (pid % blocks) * BLOCK_N, pid // blocks % SPLITS
    bh = pid // blocks // SPLITS
    b, kv_h = (bh // kv_heads).to(tl.int64), (bh % kv_heads).to(tl.int64)
    columns = tl.arange(0, D_PAD)
    lses = deltas + nq.to(tl.int64) * batch_heads
    if HAS_KEY_INDEX:
        key_index += b * key_index_strides[0] + kv_h * key_index_strides[1]
    if SPLITS > 1:
        part = split.to(tl.int64) * nk * (batch_heads // group)
        dk, dv = dk + part * D, dv + part * D
        if HAS_BIAS:
            dbias += part
    dk += b * dk_strides[0] + kv_h * dk_strides[1]
    dv += b * dv_strides[0] + kv_h * dv_strides[1]
    if HAS_BIAS:
        dbias += bh.to(tl.int64) * nk

    key_count = count_of(key_counts, key_index_strides, b, kv_h, nk, HAS_KEY_INDEX)
    if HAS_KEY_INDEX and SPLITS == 1:
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
        bias = tl.zeros((BLOCK_N,), tl.float32)
        dbias_tile = tl.zeros((BLOCK_N,), tl.float32)
        takes_part = is_key
        if HAS_BIAS:
            key_bias += b * bias_strides[0] + kv_h * bias_strides[1]
            bias = tl.load(key_bias + keys * bias_strides[2], mask=is_key, other=0.0) * UNIT
            takes_part = is_key & (bias != float("-inf"))
        kv_mask = tile_mask(takes_part, columns, D_READ, D_PAD)
        k += b * k_strides[0] + kv_h * k_strides[1]
        v += b * v_strides[0] + kv_h * v_strides[1]
        k_tile = load_rows(k, keys, k_strides, columns, kv_mask)
        v_tile = load_rows(v, keys, v_strides, columns, kv_mask)
        # The row of a key that does not exist may come to hold anything, NaN too: it is not stored.
        dk_tile = tl.zeros((BLOCK_N, D_PAD), tl.float32)
        dv_tile = tl.zeros((BLOCK_N, D_PAD), tl.float32)

        for member in range(group):
            h = kv_h * group + member
            places_of_head = (b * kv_heads * group + h) * nq
            index = query_index
            if HAS_QUERY_INDEX:
                index += b * query_index_strides[0] + h * query_index_strides[1]
            query_count = count_of(query_counts, query_index_strides, b, h, nq, HAS_QUERY_INDEX)
            q_head = q + b * q_strides[0] + h * q_strides[1]
            dout_head = dout + b * dout_strides[0] + h * dout_strides[1]
            share = tl.cdiv(tl.cdiv(query_count, BLOCK_M), SPLITS) * BLOCK_M
            begin = split * share
            end = tl.minimum(begin + share, query_count)
            for start in range(begin, end, BLOCK_M):
                query_places = start + tl.arange(0, BLOCK_M)
                in_index = query_places < end
                lse = tl.load(
                    lses + places_of_head + query_places, mask=in_index, other=float("inf")
                )
                delta = tl.load(deltas + places_of_head + query_places, mask=in_index, other=0.0)
                queries, _ = selected_rows(index, query_places, end, nq, HAS_QUERY_INDEX)
                q_mask = tile_mask(lse != float("inf"), columns, D_READ, D_PAD)
                q_tile = load_rows(q_head, queries, q_strides, columns, q_mask)
                s = dot(
                    k_tile, tl.trans(q_tile), tl.zeros((BLOCK_N, BLOCK_M), tl.float32), PRECISION
                )
                s = s * score_scale
                if HAS_BIAS:
                    s += bias[:, None]
                p = tl.exp2((s - lse[None, :]) * (LOG2E / UNIT))
                dout_tile = load_rows(dout_head, queries, dout_strides, columns, q_mask)
                dv_tile = dot(p.to(dout_tile.dtype), dout_tile, dv_tile, PRECISION)
                dp = dot(
                    v_tile,
                    tl.trans(dout_tile),
                    tl.zeros((BLOCK_N, BLOCK_M), tl.float32),
                    PRECISION,
                )
                ds = p * (dp - delta[None, :])
                if HAS_BIAS:
                    dbias_tile += tl.sum(ds, 1)
                dk_tile = dot(ds.to(q_tile.dtype), q_tile, dk_tile, PRECISION)

        kv_mask = tile_mask(is_key, columns, D, D_PAD)
        targets = keys
        if SPLITS > 1:
            targets = places.to(tl.int64)
        store_rows(dk, targets, dk_strides, columns, dk_tile * scale, kv_mask)
        store_rows(dv, targets, dv_strides, columns, dv_tile, kv_mask)
        if HAS_BIAS:
            tl.store(dbias + targets, dbias_tile, mask=is_key)


@triton.jit(do_not_specialize=["batch_heads", "heads", "group", "nq", "nk"])
def dq_kernel(
    dout,  # (B, Hq, Nq, D)
    q,  # (B, Hq, Nq, D)
    k,  # (B, Hkv, Nk, D)
    v,  # (B, Hkv, Nk, D)
    key_bias,  # (B, Hkv, Nk) float32
    deltas,  # as delta_kernel writes them
    dq,  # (B, Hq, Nq, D)
    query_index,
    query_counts,
    key_index,
    key_counts,
    scale,
    score_scale,  # scale * UNIT
    dout_strides,
    q_strides,
    k_strides,
    v_strides,
    bias_strides,
    dq_strides,
    query_index_strides,
    key_index_strides,
    batch_heads,  # B * Hq
    heads,
    group,
    nq,
    nk,
    HAS_QUERY_INDEX: tl.constexpr,
    HAS_KEY_INDEX: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    D_READ: tl.constexpr,  # of the rows of dout, q, k and v: D, or more where zeros follow
    D_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    blocks = tl.cdiv(nq, BLOCK_M)
    pid = tl.program_id(0)
    first, bh = (pid % blocks) * BLOCK_M, pid // blocks
    b, h = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    kv_h = h // group
    columns = tl.arange(0, D_PAD)
    lses = deltas + nq.to(tl.int64) * batch_heads
    if HAS_QUERY_INDEX:
        query_index += b * query_index_strides[0] + h * query_index_strides[1]
    if HAS_KEY_INDEX:
        key_index += b * key_index_strides[0] + kv_h * key_index_strides[1]
    if HAS_BIAS:
        key_bias += b * bias_strides[0] + kv_h * bias_strides[1]
    dq += b * dq_strides[0] + h * dq_strides[1]
    k += b * k_strides[0] + kv_h * k_strides[1]
    v += b * v_strides[0] + kv_h * v_strides[1]

    query_count = count_of(query_counts, query_index_strides, b, h, nq, HAS_QUERY_INDEX)
    if HAS_QUERY_INDEX:
        rows, zero = unselected_rows(query_index, query_count, first, nq, BLOCK_M)
        nothing = tl.zeros((BLOCK_M, D_PAD), tl.float32)
        mask = tile_mask(zero, columns, D, D_PAD)
        store_rows(dq, rows, dq_strides, columns, nothing, mask)

    if first < query_count:
        places = first + tl.arange(0, BLOCK_M)
        in_index = places < query_count
        of_head = bh.to(tl.int64) * nq + places
        lse = tl.load(lses + of_head, mask=in_index, other=float("inf"))
        delta = tl.load(deltas + of_head, mask=in_index, other=0.0)
        queries, is_query = selected_rows(query_index, places, query_count, nq, HAS_QUERY_INDEX)
        q_mask = tile_mask(lse != float("inf"), columns, D_READ, D_PAD)
        q += b * q_strides[0] + h * q_strides[1]
        dout += b * dout_strides[0] + h * dout_strides[1]
        q_tile = load_rows(q, queries, q_strides, columns, q_mask)
        dout_tile = load_rows(dout, queries, dout_strides, columns, q_mask)
        dq_tile = tl.zeros((BLOCK_M, D_PAD), tl.float32)
        key_count = count_of(key_counts, key_index_strides, b, kv_h, nk, HAS_KEY_INDEX)
        for start in range(0, key_count, BLOCK_N):
            key_places = start + tl.arange(0, BLOCK_N)
            keys, is_key = selected_rows(key_index, key_places, key_count, nk, HAS_KEY_INDEX)
            if HAS_BIAS:
                bias = tl.load(key_bias + keys * bias_strides[2], mask=is_key, other=0.0)
                is_key = is_key & (bias != float("-inf"))
            kv_mask = tile_mask(is_key, columns, D_READ, D_PAD)
            k_tile = load_rows(k, keys, k_strides, columns, kv_mask)
            v_tile = load_rows(v, keys, v_strides, columns, kv_mask)
            s = dot(q_tile, tl.trans(k_tile), tl.zeros((BLOCK_M, BLOCK_N), tl.float32), PRECISION)
            s = s * score_scale
            if HAS_BIAS:
                s += (bias * UNIT)[None, :]
            s = tl.where(is_key[None, :], s, float("-inf"))
            p = tl.exp2((s - lse[:, None]) * (LOG2E / UNIT))
            dp = dot(
                dout_tile, tl.trans(v_tile), tl.zeros((BLOCK_M, BLOCK_N), tl.float32), PRECISION
            )
            ds = p * (dp - delta[:, None])
            dq_tile = dot(ds.to(k_tile.dtype), k_tile, dq_tile, PRECISION)
        store_rows(
            dq,
            queries,
            dq_strides,
            columns,
            dq_tile * scale,
            tile_mask(is_query, columns, D, D_PAD),
        )
