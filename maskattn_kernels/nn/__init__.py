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
from maskattn_kernels.nn.disentangled import DisentangledAttention2d
from maskattn_kernels.nn.entropy_selector import EntropySelector
from maskattn_kernels.nn.gumbel_selectors import (
    ExploringSelector,
    GumbelSelector,
    GumbelTopKSelector,
)
from maskattn_kernels.nn.mask_head import MaskHead
from maskattn_kernels.nn.multihead import MaskedMultiheadAttention
from maskattn_kernels.nn.named_selectors import SELECTORS, make_selector
from maskattn_kernels.nn.score_selectors import (
    LocalTopKSelector,
    ScoreSelector,
    ThresholdSelector,
    TopKSelector,
    keep_ratio_loss,
)
from maskattn_kernels.nn.selectors import RandomSelector, Selection, Selector

__all__ = [
    "SELECTORS",
    "AttentionCore",
    "DenseAttentionCore",
    "DisentangledAttention2d",
    "EntropySelector",
    "ExploringSelector",
    "GumbelSelector",
    "GumbelTopKSelector",
    "IdentityAttentionCore",
    "LocalTopKSelector",
    "MaskAttention2d",
    "MaskHead",
    "MaskedMultiheadAttention",
    "RandomSelector",
    "SDPAAttentionCore",
    "ScoreSelector",
    "Selection",
    "Selector",
    "SparseAttentionCore",
    "ThresholdSelector",
    "TopKSelector",
    "keep_ratio_loss",
    "make_core",
    "make_selector",
]
