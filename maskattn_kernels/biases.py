# SPDX-License-Identifier: BSD-3-Clause
"""Biases of any size: kernels see them relative to the largest one.

A softmax does not feel a shift of all scores, but lse does: next to -1e9, as padding is often
written, a float32 has no room for the logarithm of a sum, and the backward pass needs it. Backends
that `takes_any_bias` subtract the largest one themselves.
"""

import torch
from torch import Tensor

from maskattn_kernels.backends.base import accumulation_dtype
from maskattn_kernels.token_index import TokenIndex


def relative_bias(
    key_bias: Tensor, key_tokens: Tensor | TokenIndex | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """A bias relative to the largest one of the selected keys of its head, and that one.

    The bias `(B | 1, H | 1, N)` in the accumulation dtype of a call in `dtype`, 0 at most for
    selected keys; and the level `(B | 1, H | 1, 1)`, which has no gradient.
    """
    own = accumulation_dtype(dtype)
    if key_bias.dtype is not own:
        key_bias = key_bias.to(torch.promote_types(key_bias.dtype, own))
    level = bias_level(key_bias, key_tokens)
    key_bias = key_bias - level
    return key_bias if key_bias.dtype is own else key_bias.to(own), level


def bias_level(key_bias: Tensor, key_tokens: Tensor | TokenIndex | None) -> Tensor:
    """The largest bias of the selected keys of each head, `(B | 1, H | 1, 1)`; no gradient."""
    if key_bias.shape[-1] == 0:
        return key_bias.new_zeros(*key_bias.shape[:2], 1)
    highest = key_bias.detach()
    if key_tokens is not None:
        mask = key_tokens.to_mask() if isinstance(key_tokens, TokenIndex) else key_tokens
        highest = torch.where(mask, highest, -torch.inf)
    # Finite, or -inf - -inf would be NaN: no key is selected, or none takes part.
    return highest.amax(-1, keepdim=True).clamp_min(torch.finfo(key_bias.dtype).min)


def absolute_lse(lse: Tensor, level: Tensor) -> Tensor:
    """The lse `(B, Hq, N)` of scores with absolute biases, from that with relative ones."""
    heads = level.shape[1]
    group = 1 if heads in (1, lse.shape[1]) else lse.shape[1] // heads
    return lse + level.to(lse.dtype).repeat_interleave(group, 1)
