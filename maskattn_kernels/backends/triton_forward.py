# SPDX-License-Identifier: BSD-3-Clause
"""The forward pass: out and lse of the selected queries over the selected keys, zeros elsewhere.

    s_j = scale <q, k_j> + key_bias_j
    lse = log sum_j exp(s_j)     out = sum_j exp(s_j - lse) v_j

One program owns BLOCK_M selected queries of one head, and the zeros among BLOCK_M original rows
(`triton_index`). It gathers its queries once, then goes over the selected keys in blocks of
BLOCK_N: rows of K and V are gathered straight from where they lie, as whole rows of contiguous
numbers; nothing is copied beforehand but rows that cannot be read fast (`triton_pack`). Only the
running maximum, sum and output of the online softmax (Milakov and Gimelshein, arXiv:1805.02867; the
loop order is FlashAttention-2's, arXiv:2307.08691) stay in registers.

Scores are kept in units of UNIT: log2(e) makes exp(s) a bare exp2, with scale and bias folded into
one multiply-add; 1, for float32, keeps lse and score of a lone key equal to the last bit.

Few queries over many keys would leave most of the chip idle. Then SPLITS programs share the keys of
a block of queries, each writes its own (out, lse) into a workspace, and `combine_kernel` weighs
them. How many is decided from sizes alone, never from the mask, so results are repeatable.

With SHORT the index is not made yet: sequences have at most so many tokens, and every program lists
the selected ones itself, from the masks. Then the same happens in the same order, to the same bits.
"""

import triton
import triton.language as tl

from maskattn_kernels.backends.triton_index import (
    count_of,
    dot,
    list_mask,
    load_rows,
    selected_rows,
    store_rows,
    tile_mask,
    unselected_by_mask,
    unselected_rows,
)

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit(do_not_specialize=["batch_heads", "heads", "group", "nq", "nk"])
def fwd_kernel(
    q,  # (B, Hq, Nq, D)
    k,  # (B, Hkv, Nk, D)
    v,  # (B, Hkv, Nk, D)
    key_bias,  # (B, Hkv, Nk) float32
    out,  # as q; with SPLITS > 1 part_out of combine_kernel
    lse,  # (B, Hq, Nq) float32; with SPLITS > 1 part_lse
    query_index,  # with SHORT the mask, as bytes; then there are no counts
    query_counts,
    key_index,
    key_counts,
    score_scale,  # scale * UNIT
    q_strides,  # of batch, head, token; the last dimension is contiguous
    k_strides,
    v_strides,
    bias_strides,
    out_strides,
    query_index_strides,  # of index and counts: batch, head, batch, head; with SHORT: of the mask
    key_index_strides,
    batch_heads,  # B * Hq
    heads,
    group,  # query heads of one kv head
    nq,
    nk,
    HAS_QUERY_INDEX: tl.constexpr,
    HAS_KEY_INDEX: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SPLITS: tl.constexpr,
    SHORT: tl.constexpr,
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
    D: tl.constexpr,
    D_READ: tl.constexpr,  # of the rows of k and v: D, or more where zeros follow
    D_PAD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    blocks = tl.cdiv(nq, BLOCK_M)
    pid = tl.program_id(0)
    first, split = (pid % blocks) * BLOCK_M, pid // blocks % SPLITS
    bh = pid // blocks // SPLITS
    b, h = (bh // heads).to(tl.int64), (bh % heads).to(tl.int64)
    kv_h = h // group
    columns = tl.arange(0, D_PAD)
    if HAS_QUERY_INDEX:
        query_index += b * query_index_strides[0] + h * query_index_strides[1]
    if HAS_KEY_INDEX:
        key_index += b * key_index_strides[0] + kv_h * key_index_strides[1]
    q += b * q_strides[0] + h * q_strides[1]
    k += b * k_strides[0] + kv_h * k_strides[1]
    v += b * v_strides[0] + kv_h * v_strides[1]
    if HAS_BIAS:
        key_bias += b * bias_strides[0] + kv_h * bias_strides[1]
    out += b * out_strides[0] + h * out_strides[1]
    lse += bh.to(tl.int64) * nq
    if SPLITS > 1:
        part = split.to(tl.int64) * nq * batch_heads
        out, lse = out + part * D, lse + part

    if SHORT and HAS_QUERY_INDEX:
        query_list, query_count = list_mask(query_index, query_index_strides[2], nq, SHORT)
    else:
        query_list = query_index
        query_count = count_of(query_counts, query_index_strides, b, h, nq, HAS_QUERY_INDEX)
    if HAS_QUERY_INDEX and SPLITS == 1:
        if SHORT:
            rows, zero = unselected_by_mask(query_index, query_index_strides[2], first, nq, BLOCK_M)
        else:
            rows, zero = unselected_rows(query_index, query_count, first, nq, BLOCK_M)
        nothing = tl.zeros((BLOCK_M, D_PAD), tl.float32)
        mask = tile_mask(zero, columns, D, D_PAD)
        store_rows(out, rows, out_strides, columns, nothing, mask)
        tl.store(lse + rows, tl.full((BLOCK_M,), float("-inf"), tl.float32), mask=zero)

    if first < query_count:
        places = first + tl.arange(0, BLOCK_M)
        rows, counts = selected_rows(query_list, places, query_count, nq, HAS_QUERY_INDEX, SHORT)
        q_mask = tile_mask(counts, columns, D, D_PAD)
        q_tile = load_rows(q, rows, q_strides, columns, q_mask)

        if SHORT and HAS_KEY_INDEX:
            key_list, key_count = list_mask(key_index, key_index_strides[2], nk, SHORT)
        else:
            key_list = key_index
            key_count = count_of(key_counts, key_index_strides, b, kv_h, nk, HAS_KEY_INDEX)
        share = tl.cdiv(tl.cdiv(key_count, BLOCK_N), SPLITS) * BLOCK_N
        begin = split * share
        end = tl.minimum(begin + share, key_count)

        m = tl.full((BLOCK_M,), float("-inf"), tl.float32)  # running maximum of the scores
        total = tl.zeros((BLOCK_M,), tl.float32)  # of exp(score - m)
        acc = tl.zeros((BLOCK_M, D_PAD), tl.float32)
        for start in range(begin, end, BLOCK_N):
            key_places = start + tl.arange(0, BLOCK_N)
            keys, is_key = selected_rows(key_list, key_places, end, nk, HAS_KEY_INDEX, SHORT)
            kv_mask = tile_mask(is_key, columns, D_READ, D_PAD)
            k_tile = load_rows(k, keys, k_strides, columns, kv_mask)
            s = dot(q_tile, tl.trans(k_tile), tl.zeros((BLOCK_M, BLOCK_N), tl.float32), PRECISION)
            s = s * score_scale
            if HAS_BIAS:
                bias = tl.load(key_bias + keys * bias_strides[2], mask=is_key, other=0.0)
                s += (bias * UNIT)[None, :]
                is_key = is_key & (bias != float("-inf"))
                kv_mask = tile_mask(is_key, columns, D_READ, D_PAD)
            s = tl.where(is_key[None, :], s, float("-inf"))

            m_next = tl.maximum(m, tl.max(s, 1))
            level = tl.where(m_next == float("-inf"), 0.0, m_next)  # -inf - -inf would be NaN
            p = tl.exp2((s - level[:, None]) * (LOG2E / UNIT))
            shrink = tl.exp2((m - level) * (LOG2E / UNIT))
            total = total * shrink + tl.sum(p, 1)
            v_tile = load_rows(v, keys, v_strides, columns, kv_mask)
            acc = dot(p.to(v_tile.dtype), v_tile, acc * shrink[:, None], PRECISION)
            m = m_next

        total = tl.where(total == 0.0, 1.0, total)  # no key: out 0, lse -inf; NaN stays
        acc = acc / total[:, None]
        targets = rows
        if SPLITS > 1:
            targets = places.to(tl.int64)
        store_rows(out, targets, out_strides, columns, acc, q_mask)
        tl.store(lse + targets, m / UNIT + tl.log(total), mask=counts)
