# SPDX-License-Identifier: BSD-3-Clause
"""Attention modules built on `masked_attention`, and the selectors that draw their masks."""

from maskattn_kernels.nn.attention2d import MaskAttention2d
from maskattn_kernels.nn.cores import (
    AttentionCore,
    DenseAttentionCore,
    IdentityAttentionCore,
    SDPAAttentionCore,
    SparseAttentionCore,
    make_core,
)
from maskattn_kernels.nn.multihead import MaskedMultiheadAttention
from maskattn_kernels.nn.selectors import RandomSelector, Selection, Selector

__all__ = [
    "AttentionCore",
    "DenseAttentionCore",
    "IdentityAttentionCore",
    "MaskAttention2d",
    "MaskedMultiheadAttention",
    "RandomSelector",
    "SDPAAttentionCore",
    "Selection",
    "Selector",
    "SparseAttentionCore",
    "make_core",
]
