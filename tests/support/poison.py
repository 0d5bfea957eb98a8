# SPDX-License-Identifier: BSD-3-Clause
"""Poison in the tokens that are not selected: no result may change by it."""

from dataclasses import replace

import torch
from cases import Inputs
from oracle import per_head
from torch import Tensor

FIELDS = ("query", "key", "value", "key_bias", "dout", "dlse")


def poisoned(x: Inputs, fields: tuple[str, ...], poison: float) -> Inputs:
    changes = {}
    for name in fields:
        t = getattr(x, name)
        if t is not None:
            changes[name] = put(t, unselected(x, name), poison)
    return replace(x, **changes)


def unselected(x: Inputs, name: str) -> Tensor:
    """bool, broadcastable over tensor `name`: its tokens that are not selected."""
    of_keys = name in ("key", "value", "key_bias", "dk", "dv", "dbias")
    mask, heads = (x.key_mask, x.key.shape[1]) if of_keys else (x.query_mask, x.query.shape[1])
    mask = torch.ones(1, 1, 1, dtype=torch.bool) if mask is None else per_head(mask, heads)
    if name == "key_bias" and x.key_bias.dim() == 2:
        mask = mask.any(1)  # one bias for all heads: poison where no head has selected the token
    return ~mask


def put(t: Tensor, tokens: Tensor, value: float) -> Tensor:
    if tokens.dim() < t.dim():
        tokens = tokens.unsqueeze(-1)
    poison = torch.tensor(value, device=t.device).to(t.dtype)  # inf where it overflows
    return torch.where(tokens.to(t.device), poison, t)
