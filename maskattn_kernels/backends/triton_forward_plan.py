# SPDX-License-Identifier: BSD-3-Clause
"""Plans of the forward pass: selection, packed rows, attention, and the sum of shared keys."""

import torch
import triton
from torch import Tensor

from maskattn_kernels.backends import tuning
from maskattn_kernels.backends.arguments import check_forward, check_tensor
from maskattn_kernels.backends.triton_choices import (
    ALL,
    SELECT_BLOCK,
    SHORT,
    Selection,
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
from maskattn_kernels.backends.triton_combine import combine_kernel
from maskattn_kernels.backends.triton_forward import fwd_kernel
from maskattn_kernels.backends.triton_index import select_tokens_kernel
from maskattn_kernels.backends.triton_plans import ABSENT, Launch, Plan, Result, as_read


def plan_select_tokens(mask: Tensor) -> Plan:
    check_tensor("mask", mask, mask, torch.bool, (-1, -1, -1))
    index, _, launches = _list_tokens(mask, place=0, first_result=1)
    return Plan(index, 2, launches)


def _list_tokens(
    mask: Tensor, place: int, first_result: int
) -> tuple[list[Result], Selection, list[Launch]]:
    """The index of a mask: its tensors, the selection they make, and what writes them."""
    b, h, n = mask.shape
    empty = b * h * n == 0
    results = [
        Result((b, h, n), (h * n, n, 1), torch.int32),
        Result((b, h), (h, 1), torch.int32, 0 if empty else None),
    ]
    strides = [h * n if b > 1 else 0, n if h > 1 else 0, h if b > 1 else 0, 1 if h > 1 else 0]
    selection = Selection(first_result, first_result + 1, tuple(strides))
    places = (place, first_result, first_result + 1)
    block = min(SELECT_BLOCK, max(16, triton.next_power_of_2(n)))
    fixed = (mask.stride(), h, n)
    launch = Launch(select_tokens_kernel, b * h, places, (), fixed, {"BLOCK": block})
    return results, selection, [] if empty else [launch]


def plan_fwd(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_indices: Tensor | None,
    query_counts: Tensor | None,
    key_indices: Tensor | None,
    key_counts: Tensor | None,
    key_bias: Tensor | None,
    precision: str,
) -> Plan:
    index = (query_indices, query_counts, key_indices, key_counts)
    check_forward(query, key, value, *index, key_bias)
    results, launches = _forward(
        query, key, value, key_bias, (0, 1, 2, 7 if key_bias is not None else ABSENT),
        selection_of(query_indices, query_counts, 3), selection_of(key_indices, key_counts, 5),
        precision, short=0, first_result=8,
    )  # fmt: skip
    return Plan(results, 2, launches)


def plan_infer(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    key_bias: Tensor | None,
    precision: str,
    shared: bool,
) -> Plan:
    check_forward(query, key, value, None, None, None, None, key_bias)
    for name, mask, of in (("query_mask", query_mask, query), ("key_mask", key_mask, key)):
        if mask is not None:
            check_tensor(name, mask, query, torch.bool, of.shape[:3], broadcast=2)
    short = SHORT if max(query.shape[2], key.shape[2]) <= SHORT else 0
    queries, keys = _mask(query_mask, 3), _mask(key_mask, 4)
    lists: list[Result] = []
    listing: list[Launch] = []
    if not short:
        # The index comes behind out, lse and the workspace of split keys and packed rows.
        if key_mask is not None:
            lists, keys, listing = _list_tokens(key_mask, 4, first_result=12)
        if shared:
            queries = keys
        elif query_mask is not None:
            more, queries, again = _list_tokens(query_mask, 3, first_result=12 + len(lists))
            lists, listing = lists + more, listing + again
    results, launches = _forward(
        query, key, value, key_bias, (0, 1, 2, 5 if key_bias is not None else ABSENT),
        queries, keys, precision, short=short, first_result=6,
    )  # fmt: skip
    return Plan([*results, *lists], 2, [*listing, *launches] if launches else [])


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_bias: Tensor | None,
    places: tuple[int, int, int, int],
    queries: Selection,
    keys: Selection,
    precision: str,
    *,
    short: int,
    first_result: int,
) -> tuple[list[Result | None], list[Launch]]:
    """out, lse, and four tensors of workspace; and what writes them."""
    b, hq, nq, d = query.shape
    hkv, nk = key.shape[1:3]
    empty = b * hq * nq * d == 0 or nk == 0
    out = result_like(query, 0.0 if empty else None)
    lse = Result((b, hq, nq), (hq * nq, nq, 1), fill=-torch.inf if empty else None)
    if empty:
        return [out, lse, None, None, None, None], []
    chip = chip_of(query.device)
    # With few keys there is no loop to speak of: many small tiles, and none of them shared.
    config = config_for("fwd", query, b * hq * nq if nk > SHORT else 0, chip)
    programs = b * hq * triton.cdiv(nq, config.block_m)
    splits = 1
    if nk > SHORT:
        at_a_time = programs_at_a_time("fwd", config, query, chip)
        expected = nk // tuning.LIKELY_KEEP if keys.given else nk
        splits = tuning.key_splits(programs, expected, config.block_n, at_a_time)
    parts: list[Result | None] = [None, None]
    target, target_strides = (first_result, first_result + 1), out.stride[:3]
    if splits > 1:
        rows = splits * b * hq * nq
        parts = [Result((rows * d,), (1,)), Result((rows,), (1,))]
        target, target_strides = (first_result + 2, first_result + 3), (hq * nq * d, nq * d, d)
    q, k, v = as_read(query), as_read(key), as_read(value)
    rows_of_keys, width, launches = (k.stride()[:3], v.stride()[:3]), d, []
    packed: Result | None = None
    if not short and is_packed((k, v), nq * hq // hkv):
        at, width = first_result + 4, packed_width(d)
        packed, launch = pack(k, v, places[1:3], keys, at)
        launches.append(launch)
        rows_of_keys, places = (packed.stride[:3],) * 2, (places[0], at, at + 1, places[3])
    fixed = (
        q.stride()[:3], *rows_of_keys, strides_of(key_bias), target_strides,
        queries.strides, keys.strides, b * hq, hq, hq // hkv, nq, nk,
    )  # fmt: skip
    constants = {
        "HAS_QUERY_INDEX": queries.given, "HAS_KEY_INDEX": keys.given,
        "HAS_BIAS": key_bias is not None, "SPLITS": splits, "SHORT": short,
        **numerics_of(query, width, precision), **tile_of(config),
    }  # fmt: skip
    index = (queries.indices, queries.counts, keys.indices, keys.counts)
    pointers = (*places, *target, *index)
    launches.append(
        Launch(fwd_kernel, programs * splits, pointers, (unit_of(query),), fixed, constants)
    )
    if splits > 1:
        block = small_block(d)
        launches.append(
            Launch(
                combine_kernel, b * hq * triton.cdiv(nq, block),
                (*target, first_result, first_result + 1, queries.indices, queries.counts), (),
                (out.stride[:3], queries.strides, b * hq, hq, nq),
                {
                    "HAS_QUERY_INDEX": queries.given, "SPLITS": splits,
                    "D": d, "D_PAD": tuning.head_dim_pad(d), "BLOCK_M": block,
                },
            )
        )  # fmt: skip
    return [out, lse, *parts, packed, packed], launches


def _mask(mask: Tensor | None, place: int) -> Selection:
    if mask is None:
        return ALL
    b, h = (mask.stride(dim) if mask.shape[dim] > 1 else 0 for dim in (0, 1))
    return Selection(place, ABSENT, (b, h, mask.stride(2), 0))
