# SPDX-License-Identifier: BSD-3-Clause
"""Layouts of (B, H, N, D) in memory: the same numbers with other strides."""

from collections.abc import Callable

import torch
from torch import Tensor


def tokens_first(t: Tensor) -> Tensor:
    """(B, N, H, D) in memory: a projection split into heads."""
    return t.transpose(1, 2).contiguous().transpose(1, 2)


def fused(t: Tensor) -> Tensor:
    """The middle third of a fused qkv projection: (B, N, 3, H, D) in memory."""
    return torch.stack([torch.full_like(t, torch.nan), t, torch.full_like(t, torch.nan)])[1]


def fused_tokens_first(t: Tensor) -> Tensor:
    pad = torch.full_like(t, torch.nan).transpose(1, 2)
    return torch.stack([pad, t.transpose(1, 2), pad], dim=2)[:, :, 1].transpose(1, 2)


def concatenated(t: Tensor) -> Tensor:
    """A slice of the last dimension of something wider."""
    pad = torch.full_like(t, torch.nan)
    return torch.cat([pad, t, pad], dim=-1)[..., t.shape[-1] : 2 * t.shape[-1]]


def offset_by_one(t: Tensor) -> Tensor:
    """Rows that start at odd addresses."""
    storage = t.new_full((t.numel() + 1,), torch.nan)
    storage[1:] = t.flatten()
    return storage[1:].view(t.shape)


def every_other_token(t: Tensor) -> Tensor:
    return torch.stack([t, torch.full_like(t, torch.nan)], dim=3).flatten(2, 3)[:, :, ::2]


def reordered(*order: int) -> Callable[[Tensor], Tensor]:
    """The dimensions in another order of memory."""
    back = sorted(range(4), key=order.__getitem__)
    return lambda t: t.permute(order).contiguous().permute(back)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": torch.Tensor.contiguous,
    "tokens_first": tokens_first,
    "batch_last": reordered(1, 2, 3, 0),
    "heads_last": reordered(0, 2, 3, 1),
    "channels_first": reordered(0, 1, 3, 2),  # last dimension not contiguous
    "reversed": reordered(3, 2, 1, 0),
    "fused": fused,
    "fused_tokens_first": fused_tokens_first,
    "concatenated": concatenated,
    "offset_by_one": offset_by_one,
    "every_other_token": every_other_token,
    "every_other_feature": lambda t: torch.stack([t, t * torch.nan], dim=-1).flatten(3)[..., ::2],
}
# Strides of 0 hold one value many times, so they change the numbers too: their twin is made dense.
EXPANDED: dict[str, Callable[[Tensor], Tensor]] = {
    "batch": lambda t: t[:1].expand(t.shape),
    "heads": lambda t: t[:, :1].expand(t.shape),
    "tokens": lambda t: t[:, :, :1].expand(t.shape),
    "features": lambda t: t[..., :1].expand(t.shape),
    "everything": lambda t: t[:1, :1, :1, :1].expand(t.shape),
}
