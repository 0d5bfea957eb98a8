# SPDX-License-Identifier: BSD-3-Clause
"""FlexAttention as a peer: compiled, with the token mask as a block mask.

Scattered tokens are its worst case: it skips a block of 128 keys only if no key in it is selected.
Building the block mask takes time, so it is measured twice: with the mask built in the call, as the
other peers prepare what they need, and with the mask built before, which favours FlexAttention.
"""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from maskattn_kernels.benchmark.cases import Attention

__all__ = ["flex", "flex_with_mask"]


def block_mask(mask: Tensor, mode: str) -> BlockMask:
    """The block mask of a bool token mask (B, N)."""

    def keys(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return mask[b, j]

    def keys_and_queries(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return mask[b, j] & mask[b, i]

    batch, tokens = mask.shape
    mod = keys_and_queries if mode == "qk" else keys
    return create_block_mask(mod, batch, 1, tokens, tokens, device=str(mask.device))


def flex(mask: Tensor, mode: str) -> Attention:
    """FlexAttention with the block mask of ``mask``, built once, now."""
    compiled = torch.compile(flex_attention, dynamic=False)
    made = block_mask(mask, mode)

    def flex_prebuilt(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, mode: str) -> Tensor:
        return compiled(query, key, value, block_mask=made)

    return flex_prebuilt


def flex_with_mask(mask: Tensor, mode: str) -> Attention:
    """FlexAttention that builds its block mask in every call."""
    compiled = torch.compile(flex_attention, dynamic=False)

    def flex_whole(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, mode: str) -> Tensor:
        return compiled(query, key, value, block_mask=block_mask(mask, mode))

    return flex_whole
