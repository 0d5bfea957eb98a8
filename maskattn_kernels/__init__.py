# SPDX-License-Identifier: BSD-3-Clause
"""Attention over selected tokens: exact, differentiable, O(N D) memory."""

import maskattn_kernels.common.starting  # noqa: F401  # isort: skip  # before long imports
from maskattn_kernels._version import __version__
from maskattn_kernels.autograd_functions import MaskedAttentionFunction
from maskattn_kernels.explanation import backends, explain
from maskattn_kernels.functional import masked_attention
from maskattn_kernels.graphs import warm_up
from maskattn_kernels.swap import SwapReport, swap_attention, unswap_attention
from maskattn_kernels.token_index import TokenIndex, select_tokens

__all__ = [
    "MaskedAttentionFunction",
    "SwapReport",
    "TokenIndex",
    "__version__",
    "backends",
    "explain",
    "masked_attention",
    "select_tokens",
    "swap_attention",
    "unswap_attention",
    "warm_up",
]
