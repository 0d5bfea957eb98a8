# SPDX-License-Identifier: BSD-3-Clause
"""The plan of the backward pass: deltas, packed rows, keys (and the sum of their shares),
queries."""

import triton
from torch import Tensor

from maskattn_kernels.backends import tuning
from maskattn_kernels.backends.arguments import check_backward, check_forward
from maskattn_kernels.backends.triton_backward import delta_kernel, dkdv_kernel, dq_kernel
from maskattn_kernels.backends.triton_choices import (
    chip_of,
    config_for,
    is_packed,
    numerics_of,
    pack,
    packed_width,
    programs_at_a_time,
    result_like,
    selection_of,
    small_block,
    strides_of,
    tile_of,
    unit_of,
)
from maskattn_kernels.backends.triton_combine import combine_keys_kernel
from maskattn_kernels.backends.triton_plans import ABSENT, Launch, Plan, Result, as_read


def plan_bwd(
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
    precision: str,
) -> Plan:
    index = (query_indices, query_counts, key_indices, key_counts)
    check_forward(query, key, value, *index, key_bias)
    check_backward(dout, dlse, out, lse, query)
    b, hq, nq, d = query.shape
    hkv, nk = key.shape[1:3]
    empty = b * hq * nq * d == 0 or nk * hkv == 0
    fill = 0.0 if empty else None
    has_bias = key_bias is not None
    of_keys = Result((b, hkv, nk), (hkv * nk, nk, 1), fill=fill)
    dbias = of_keys if has_bias else Result((0,), (1,))
    results = [result_like(query, fill), result_like(key, fill), result_like(value, fill), dbias]
    if empty:
        return Plan(results, 4, [])
    dq_at, dk_at, dv_at, dbias_at, deltas_at, dout_at, q_at, k_at, v_at = range(12, 21)
    queries = selection_of(query_indices, query_counts, 7)
    keys = selection_of(key_indices, key_counts, 9)
    bias_at = 11 if has_bias else ABSENT
    chip, unit = chip_of(query.device), unit_of(query)
    do, q, k, v, o = (as_read(t) for t in (dout, query, key, value, out))
    lists = (queries.indices, queries.counts, keys.indices, keys.counts)
    has = {
        "HAS_QUERY_INDEX": queries.given, "HAS_KEY_INDEX": keys.given, "HAS_BIAS": has_bias,
    }  # fmt: skip
    results.append(Result((2, b, hq, nq), (b * hq * nq, hq * nq, nq, 1)))

    block = small_block(d)
    delta = Launch(
        delta_kernel, b * hq * triton.cdiv(nq, block),
        (0, ABSENT if dlse is None else 1, 5, 6, deltas_at, queries.indices, queries.counts), (),
        (
            do.stride()[:3], strides_of(dlse), o.stride()[:3], lse.stride(), queries.strides,
            b * hq, hq, nq,
        ),
        {
            "HAS_QUERY_INDEX": queries.given, "HAS_DLSE": dlse is not None, "UNIT": unit,
            "D": d, "D_PAD": tuning.head_dim_pad(d), "BLOCK_M": block,
        },
    )  # fmt: skip
    launches = [delta]

    read, strides, width = (0, 2, 3, 4), tuple(t.stride()[:3] for t in (do, q, k, v)), d
    if is_packed((do, q, k, v), max(nk, nq * hq // hkv)):
        of_queries, pack_queries = pack(do, q, (0, 2), queries, dout_at)
        of_keys, pack_keys = pack(k, v, (3, 4), keys, k_at)
        results += [of_queries, of_queries, of_keys, of_keys]
        launches += [pack_queries, pack_keys]
        read, width = (dout_at, q_at, k_at, v_at), packed_width(d)
        strides = (of_queries.stride[:3],) * 2 + (of_keys.stride[:3],) * 2
    numerics, inputs = numerics_of(query, width, precision), (*read, bias_at, deltas_at)

    config = config_for("dkdv", key, b * hkv * nk, chip)
    programs = b * hkv * triton.cdiv(nk, config.block_n)
    at_a_time = programs_at_a_time("dkdv", config, key, chip)
    busy = programs // tuning.LIKELY_KEEP if keys.given else programs
    expected = nq // tuning.LIKELY_KEEP if queries.given else nq
    splits = tuning.query_splits(busy, expected, config.block_m, at_a_time)
    targets, of_rows = (dk_at, dv_at, dbias_at), (results[1].stride[:3], results[2].stride[:3])
    if splits > 1:
        rows, part_at = splits * b * hkv * nk, 12 + len(results)
        results += [Result((rows * d,), (1,))] * 2 + [Result((rows if has_bias else 0,), (1,))]
        targets, of_rows = (part_at, part_at + 1, part_at + 2), ((hkv * nk * d, nk * d, d),) * 2
    dkdv = Launch(
        dkdv_kernel, programs * splits, (*inputs, *targets, *lists), (1.0, unit),
        (
            *strides, strides_of(key_bias), *of_rows, queries.strides, keys.strides,
            b * hq, hkv, hq // hkv, nq, nk,
        ),
        {**has, "SPLITS": splits, **numerics, **tile_of(config)},
    )  # fmt: skip
    launches.append(dkdv)
    if splits > 1:
        launches.append(
            Launch(
                combine_keys_kernel, b * hkv * triton.cdiv(nk, block),
                (*targets, dk_at, dv_at, dbias_at, keys.indices, keys.counts), (),
                (results[1].stride[:3], results[2].stride[:3], keys.strides, b * hkv, hkv, nk),
                {
                    "HAS_KEY_INDEX": keys.given, "HAS_BIAS": has_bias, "SPLITS": splits,
                    "D": d, "D_PAD": tuning.head_dim_pad(d), "BLOCK_N": block,
                },
            )
        )  # fmt: skip

    config = config_for("dq", query, b * hq * nq, chip)
    launches.append(
        Launch(
            dq_kernel, b * hq * triton.cdiv(nq, config.block_m), (*inputs, dq_at, *lists),
            (1.0, unit),
            (
                *strides, strides_of(key_bias), results[0].stride[:3],
                queries.strides, keys.strides, b * hq, hq, hq // hkv, nq, nk,
            ),
            {**has, **numerics, **tile_of(config)},
        )
    )  # fmt: skip
    return Plan(results, 4, launches)
