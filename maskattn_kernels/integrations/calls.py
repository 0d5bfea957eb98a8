# SPDX-License-Identifier: BSD-3-Clause
"""Attention calls of other libraries: which ones masked_attention can run, and a count of them.

A call is that of `torch.nn.functional.scaled_dot_product_attention`. It can run where its mask is
about keys alone: one row of the mask stands for all queries.
"""

from collections import Counter
from threading import Lock

import torch
from torch import Tensor

from maskattn_kernels.backends import choose
from maskattn_kernels.functional import masked_attention
from maskattn_kernels.problem import MAX_HEAD_DIM, Problem

__all__ = ["Calls", "reason_to_hand_on", "run"]


class Calls:
    """How many attention calls ran on the op, and how many were handed on and why.

    Calls in code that torch.compile compiled are not counted.

    Attributes:
        taken: calls that ran on masked_attention.
        with_tokens: those of them in which only the given tokens took part.
        handed_on: calls that ran on torch's own, by reason.

    Example:
        >>> from maskattn_kernels.integrations.calls import Calls
        >>> calls = Calls()
        >>> calls.count(None)
        >>> calls.count("dropout")
        >>> print(calls)
        taken 1, handed on 1 (dropout 1)
    """

    def __init__(self) -> None:
        self.taken = self.with_tokens = 0
        self.handed_on: Counter[str] = Counter()
        self._lock = Lock()

    def count(self, reason: str | None, with_tokens: bool = False) -> None:
        """Counts a call.

        Args:
            reason: why it was handed on; None = it was taken.
            with_tokens: only given tokens took part.
        """
        if torch.compiler.is_compiling():
            return
        with self._lock:
            if reason is None:
                self.taken += 1
                self.with_tokens += with_tokens
            else:
                self.handed_on[reason] += 1

    def __str__(self) -> str:
        taken = f"taken {self.taken}"
        if self.with_tokens:
            taken += f" ({self.with_tokens} with tokens)"
        why = ", ".join(f"{reason} {count}" for reason, count in self.handed_on.items())
        handed_on = f"handed on {self.handed_on.total()}"
        return f"{taken}, {handed_on} ({why})" if why else f"{taken}, {handed_on}"


def reason_to_hand_on(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
) -> str | None:
    """Why `run` cannot, or should not, run a call; None if it runs it.

    Args:
        query, key, value, attn_mask, dropout_p, is_causal: as in
            `torch.nn.functional.scaled_dot_product_attention`.

    Example:
        >>> import torch
        >>> from maskattn_kernels.integrations.calls import reason_to_hand_on
        >>> q, mask = torch.zeros(1, 2, 5, 8), torch.ones(1, 1, 1, 5, dtype=torch.bool)
        >>> reason_to_hand_on(q, q, q, mask)
        >>> reason_to_hand_on(q, q, q, mask.expand(1, 1, 5, 5).tril())
        'mask of pairs'
    """
    if dropout_p > 0.0:
        return "dropout"
    if is_causal:
        return "causal"
    if any(t.is_nested or t.layout is not torch.strided for t in (query, key, value)):
        return "not dense"
    if query.dim() != 4 or key.dim() != 4 or query.shape[0] != key.shape[0]:
        return "not of shape (B, H, N, D)"
    if value.shape != key.shape or query.shape[3] > MAX_HEAD_DIM:
        return "head size"
    if attn_mask is None and query.device.type != "cpu":
        return "no mask"  # nothing to leave out, and GPUs have kernels made for that
    if attn_mask is not None and not _is_of_keys(attn_mask, query, key):
        return "mask of pairs"
    if attn_mask is not None and not (
        attn_mask.dtype is torch.bool or attn_mask.is_floating_point()
    ):
        return "mask dtype"
    batch, heads, queries, head_dim = query.shape
    _, kv_heads, keys, _ = key.shape
    dtype, device = query.dtype, query.device.type
    problem = Problem(batch, heads, kv_heads, queries, keys, head_dim, dtype, device)
    if choose(problem).name == "reference":
        return f"no kernel for {dtype} on {device}"
    return None


def run(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    tokens: Tensor | None = None,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """A call on masked_attention, to which `reason_to_hand_on` knows no reason.

    A query that sees no key gives 0, as torch gives for a bool mask. A float mask's keys at -inf or
    at the lowest number of its dtype are left out.

    Args:
        query, key, value, attn_mask, scale, enable_gqa: as in
            `torch.nn.functional.scaled_dot_product_attention`.
        tokens: bool (B or 1, N), True = takes part, as query and as key; None = all.
    """
    key_mask = key_bias = None
    if attn_mask is not None:
        row = attn_mask.select(-2, 0)
        row = row[(None,) * (3 - row.dim())]  # (B | 1, H | 1, Nk)
        if row.dtype is torch.bool:
            key_mask = row
        else:
            key_mask, key_bias = ~(row <= torch.finfo(row.dtype).min), row
    if tokens is not None:
        key_mask = tokens if key_mask is None else key_mask & tokens[:, None]
    return masked_attention(
        query,
        key,
        value,
        key_mask=key_mask,
        query_mask=tokens,
        key_bias=key_bias,
        scale=scale,
        enable_gqa=enable_gqa,
    )


def _is_of_keys(attn_mask: Tensor, query: Tensor, key: Tensor) -> bool:
    """Whether one row of a mask stands for all queries; told by its shape and strides alone."""
    if not 2 <= attn_mask.dim() <= 4 or attn_mask.shape[-1] != key.shape[2]:
        return False
    heads = attn_mask.shape[-3] if attn_mask.dim() > 2 else 1
    if heads not in (1, key.shape[1]):
        return False  # one for each of several query heads that share a key head
    rows = attn_mask.shape[-2]
    return rows == 1 or (rows == query.shape[2] and attn_mask.stride(-2) == 0)
