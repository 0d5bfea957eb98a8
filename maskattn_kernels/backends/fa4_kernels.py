# SPDX-License-Identifier: BSD-3-Clause
"""The kernels of FlashAttention-4: the one call, and the bias of keys in its language.

The only module that imports flash_attn and cutlass.
"""

import cutlass.cute as cute
import torch
from cutlass import Float32, Int32
from flash_attn.cute import flash_attn_varlen_func
from torch import Tensor


@cute.jit
def add_bias(score, item, head, q_idx, kv_idx, seqlen_info, aux_tensors):
    """score + bias[item, place]: `kv_idx` counts the places of a list, not the tokens."""
    row, place = cute.make_rmem_tensor(1, Int32), cute.make_rmem_tensor(1, Int32)
    row.store(item)
    place.store(kv_idx)
    bias = cute.make_rmem_tensor(1, Float32)
    bias[0] = aux_tensors[0][row[0], place[0]]
    return score + bias.load()


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    query_counts: Tensor | None,
    pages: Tensor | None,
    key_counts: Tensor | None,
    bias: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Attention of items, each a batch entry or a kv head of one.

    Args:
        query: (items, Nq, heads, D).
        key, value: (items, Nk, kv heads, D); with pages (rows, 1, kv heads, D).
        scale: above 0, for the kernels take the largest score before they scale it.
        query_counts: int32 (items,), how many queries of an item there are; None = Nq.
        pages: int32 (items, Nk), the row of each key of an item.
        key_counts: int32 (items,), how many pages of an item are read: at least 1.
        bias: float32 (items, Nk), of the key at each page.

    Returns:
        out (items, Nq, heads, D) and lse (items, heads, Nq), not written past the query counts.
    """
    with torch.no_grad(), torch.cuda.device_of(query):
        return flash_attn_varlen_func(
            query,
            key,
            value,
            max_seqlen_q=query.shape[1],  # bounds that the host knows: no call waits for a count
            max_seqlen_k=key.shape[1] if pages is None else pages.shape[1],
            seqused_q=query_counts,
            seqused_k=key_counts,
            page_table=pages,
            softmax_scale=scale,
            score_mod=None if bias is None else add_bias,
            aux_tensors=None if bias is None else [bias],
            return_lse=True,
        )
