# SPDX-License-Identifier: BSD-3-Clause
"""Overhead of a call: on 64 tokens without grad, and on the CPU in training and by its parts."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from maskattn_kernels.benchmark.cases import Case, make_inputs
from maskattn_kernels.benchmark.check import check, oracle
from maskattn_kernels.benchmark.peers import DENSE, OURS, SDPA, make_call
from maskattn_kernels.benchmark.rows import Row
from maskattn_kernels.benchmark.timing import race
from maskattn_kernels.functional import masked_attention
from maskattn_kernels.op_table import OPS

__all__ = ["measure_overhead", "measure_parts"]

TINY = Case(64, 64, mode="qk", keep=0.5)
CALLS = 20  # in a row of a sample, so that caches are warm


def measure_overhead(seconds: float, device: str = "cpu") -> Row:
    """Race whole calls on 64 tokens, the selection included; on a GPU by the host's clock too.

    Returns:
        a row fit for JSON: for each peer its seconds and its ratio to SDPA without a mask.
    """
    case = replace(TINY, device=device)
    inputs = make_inputs(case)
    calls = {peer.name: make_call(peer.variants[0], case, inputs) for peer in (OURS, DENSE, SDPA)}
    check(case, calls[OURS.name](), oracle(case, inputs))
    for call in calls.values():
        call()
    times = race(calls, seconds, focus=tuple(calls))
    peers = {n: asdict(times.timing(n)) | {"times_sdpa": times.ratio(n, DENSE.name)} for n in calls}
    return {"name": case.name, "case": asdict(case), "peers": peers}


class _Empty(torch.autograd.Function):
    """What autograd itself costs with as many tensors as `masked_attention` gives it."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        out, lse = torch.empty_like(q), torch.empty(q.shape[:3])
        ctx.save_for_backward(q, k, v, out, lse, mask)
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx: Any, dout: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
        q, k, v, *_rest = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None


def measure_parts(seconds: float) -> dict[str, float]:
    """Seconds of a call and of its parts on the CPU, interleaved: 20th percentiles over rounds.

    A sample is some calls in a row; the low percentile is that of a machine that does nothing else.

    Returns:
        by name: "call" on 64 tokens without grad; the "op" alone, that of one token ("op, 1 token")
        and the allocation of its "results"; a "train call", forward and backward on two tokens, the
        ops alone ("train forward", "train backward"), and an empty autograd.Function ("autograd");
        "sdpa" and "train sdpa", without a mask.
    """
    ops: Any = OPS["cpu"]

    def arguments(tokens: int) -> tuple[Any, ...]:
        mask = torch.arange(tokens)[None] % 2 == 0
        return (*torch.randn(3, 1, 1, tokens, 64).unbind(), mask, mask, None, 0.125)

    q, k, v, mask, *_ = many = arguments(64)
    one, few = arguments(1), arguments(2)
    results = ops.infer(*few)
    dout = torch.ones_like(results[0])
    leaves: Any = [t.clone().requires_grad_() for t in few[:3]]
    few_masks = {"key_mask": few[3], "query_mask": few[3]}

    def gradients(out: Tensor) -> None:
        torch.autograd.grad(out, leaves, dout)

    without_grad = {
        "call": lambda: masked_attention(q, k, v, key_mask=mask, query_mask=mask),
        "op": lambda: ops.infer(*many),
        "op, 1 token": lambda: ops.infer(*one),
        "results": lambda: (torch.empty(1, 1, 64, 64), torch.empty(1, 1, 64)),
        "train forward": lambda: ops.infer(*few),
        "train backward": lambda: ops.masks_bwd(dout, None, *few[:3], *results, *few[3:]),
        "sdpa": lambda: F.scaled_dot_product_attention(q, k, v),
    }
    with_grad = {
        "train call": lambda: gradients(masked_attention(*leaves, **few_masks)),
        "autograd": lambda: gradients(_Empty.apply(*leaves, few[3])[0]),
        "train sdpa": lambda: gradients(F.scaled_dot_product_attention(*leaves)),
    }
    found: dict[str, float] = {}
    for enabled, calls in ((False, without_grad), (True, with_grad)):
        with torch.set_grad_enabled(enabled):
            samples = {name: partial(_often, call) for name, call in calls.items()}
            for sample in samples.values():
                sample()
            times = race(samples, seconds / 2, focus=tuple(samples))
        found |= {name: times.timing(name).low / CALLS for name in samples}
    return found


def _often(call: Callable[[], object]) -> None:
    for _ in range(CALLS):
        call()
