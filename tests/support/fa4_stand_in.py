# SPDX-License-Identifier: BSD-3-Clause
"""FlashAttention-4 on the CPU: what the backend fa4 asks of it, and no more than it can do.

It takes the arguments of `flash_attn_varlen_func` that the backend gives, computes in PyTorch, and
fails where the kernels would read what is not there, divide by zero, or give a wrong answer. What
the kernels do not write holds NaN.
"""

import sys
from collections.abc import Callable
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from maskattn_kernels.backends import fa4_ops


class FlashAttention:
    """The function, and the arguments of its calls."""

    def __init__(self) -> None:
        self.calls: list[SimpleNamespace] = []

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        max_seqlen_q: int,
        max_seqlen_k: int,
        seqused_q: Tensor | None,
        seqused_k: Tensor | None,
        page_table: Tensor | None,
        softmax_scale: float,
        score_mod: Callable[..., Any] | None,
        aux_tensors: list[Tensor] | None,
        return_lse: bool,
    ) -> tuple[Tensor, Tensor]:
        self.calls.append(SimpleNamespace(query=query, key=key, value=value, pages=page_table))
        items, length, heads, head_dim = query.shape
        assert query.dtype in (torch.bfloat16, torch.float16) and head_dim % 16 == 0
        assert type(max_seqlen_q) is int and max_seqlen_q >= length, "a tensor would be waited for"
        assert type(max_seqlen_k) is int
        assert softmax_scale > 0, "the largest score is taken before it is scaled"
        assert (score_mod is None) == (aux_tensors is None) and return_lse
        lengths = _counts(seqused_q, items, length, least=0)
        if page_table is None:
            assert key.shape[0] == items and seqused_k is None and aux_tensors is None
            places = max_seqlen_k = key.shape[1]
            counts = [places] * items
        else:
            places = max_seqlen_k
            counts = _counts(seqused_k, items, places, least=1)  # 0 would be divided by
            _check_pages(page_table, key, items, places)
        out = torch.full((items, length, heads, head_dim), torch.nan, dtype=query.dtype)
        lse = torch.full((items, heads, length), torch.nan)
        for item in range(items):
            rows, count = lengths[item], counts[item]
            k, v = key[item], value[item]
            if page_table is not None:
                k, v = (t[page_table[item, :count].long(), 0] for t in (key, value))
            q, k, v = (t.float().transpose(0, 1) for t in (query[item, :rows], k, v))
            k, v = (t.repeat_interleave(heads // t.shape[0], 0) for t in (k, v))
            scores = softmax_scale * (q @ k.mT)
            if aux_tensors is not None:
                (bias,) = aux_tensors
                assert bias.dtype is torch.float32 and bias.is_contiguous()
                assert bias.shape == page_table.shape
                scores = scores + bias[item, :count]
            lse[item, :, :rows] = scores.logsumexp(-1)
            p = (scores - scores.amax(-1, keepdim=True)).exp()
            total = p.sum(-1, keepdim=True)
            out[item, :rows] = ((p.to(query.dtype).float() @ v) / total).transpose(0, 1)
        return out, lse


def _counts(counts: Tensor | None, items: int, most: int, least: int) -> list[int]:
    if counts is None:
        return [most] * items
    assert counts.dtype is torch.int32 and counts.shape == (items,) and counts.stride(0) == 1
    assert bool((counts >= least).all()) and bool((counts <= most).all())
    return counts.tolist()


def _check_pages(pages: Tensor, key: Tensor, items: int, places: int) -> None:
    """Each of the item's own, also behind the counts: a tile may be looked up as a whole."""
    assert pages.dtype is torch.int32 and pages.stride(-1) == 1 and pages.shape == (items, places)
    assert key.shape[1] == 1 and key.shape[0] % items == 0, "pages of one token"
    tokens = key.shape[0] // items
    first = tokens * torch.arange(items).unsqueeze(1)
    assert bool((pages >= first).all()) and bool((pages < first + tokens).all())


def install(monkeypatch: pytest.MonkeyPatch) -> FlashAttention:
    """Makes fa4 a backend of CPU tensors, for the length of one test."""
    function = FlashAttention()
    cute = ModuleType("cutlass.cute")
    cute.jit = lambda f: f
    cutlass = ModuleType("cutlass")
    cutlass.cute, cutlass.Float32, cutlass.Int32 = cute, float, int
    flash_attn = ModuleType("flash_attn.cute")
    flash_attn.flash_attn_varlen_func = function
    found = {"cutlass": cutlass, "cutlass.cute": cute, "flash_attn": ModuleType("flash_attn")}
    for name, module in (found | {"flash_attn.cute": flash_attn}).items():
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("fa4_kernels", "fa4_calls"):  # loaded anew, before the stand-in and behind it
        monkeypatch.delitem(sys.modules, f"maskattn_kernels.backends.{name}", raising=False)
    fa4_ops._calls.cache_clear()
    _on_the_cpu()
    monkeypatch.setattr(fa4_ops.Fa4Backend, "reasons", lambda _, call: fa4_ops.limits(call, 9))
    monkeypatch.setattr(fa4_ops.Fa4Backend, "unavailable", lambda _: [])
    return function


def uninstall() -> None:
    """The backend loads the real package, or none, at its next call."""
    fa4_ops._calls.cache_clear()
    for name in ("fa4_kernels", "fa4_calls"):
        sys.modules.pop(f"maskattn_kernels.backends.{name}", None)


_LIBRARY = torch.library.Library("maskattn", "FRAGMENT")


@cache
def _on_the_cpu() -> None:
    """The ops run on CPU tensors, once for the process: nothing but `install` lets them."""
    _LIBRARY.impl("fa4_select_tokens", torch.ops.maskattn.reference_select_tokens, "CPU")
    _LIBRARY.impl("fa4_fwd", fa4_ops._fwd, "CPU")
