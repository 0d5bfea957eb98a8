# SPDX-License-Identifier: BSD-3-Clause
"""The peers: masked attention as PyTorch users write it today, and this package.

Every function takes (query, key, value, mask, mode), where the mask is bool (B, N) as a network
gives it, and returns the complete answer: the shape of the query, zero where a query is not
selected. A measured time is therefore that of a whole call.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from maskattn_kernels.benchmark.cases import Attention, Case, Inputs
from maskattn_kernels.benchmark.flex import flex, flex_with_mask
from maskattn_kernels.benchmark.varlen import (
    fa4_varlen,
    fa4_varlen_no_wait,
    varlen,
    varlen_no_wait,
)
from maskattn_kernels.functional import masked_attention

__all__ = [
    "BY_NAME",
    "DENSE",
    "EAGER",
    "FEW_PEERS",
    "FLEX",
    "GATHER",
    "GPU_PEERS",
    "OURS",
    "PEERS",
    "QUICK_PEERS",
    "SDPA",
    "SWEEP_PEERS",
    "VARLEN",
    "Peer",
    "Unsupported",
    "gather_loop",
    "gather_padded",
    "make_call",
    "ours",
]

#: Eager attention holds N x N tensors; cases where they would be larger are skipped.
EAGER_LIMIT_BYTES = 4 * 2**30
#: From this number of scores on it takes seconds and is measured at one keep ratio only.
EAGER_SLOW_SCORES, EAGER_SLOW_KEEPS = 2**27, (0.25,)
#: The cases with FlexAttention, which is compiled for each: (N, D, B) on the CPU, and keep.
FLEX_SHAPES = {
    "cpu": ((4096, 64, 1), (1024, 128, 1)),
    "cuda": ((4096, 64, 8), (1024, 128, 8)),
}
FLEX_KEEP = 0.25


def ours(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, mode: str) -> Tensor:
    """This package: selection of the tokens and attention in one call."""
    query_mask = mask if mode == "qk" else None
    gqa = query.shape[1] != key.shape[1]
    return masked_attention(query, key, value, key_mask=mask, query_mask=query_mask, enable_gqa=gqa)


def ours_cuda(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, mode: str) -> Tensor:
    """This package with the backend `cuda`, which calls on a GPU take only if asked."""
    return _ours_by("cuda", query, key, value, mask, mode)


def ours_fa4(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, mode: str) -> Tensor:
    """This package with the backend `fa4`, which calls on a GPU take only if asked."""
    return _ours_by("fa4", query, key, value, mask, mode)


def _ours_by(
    backend: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, mode: str
) -> Tensor:
    return masked_attention(
        query, key, value, key_mask=mask, query_mask=mask if mode == "qk" else None,
        backend=backend, enable_gqa=query.shape[1] != key.shape[1],
    )  # fmt: skip


def masked_sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, mode: str) -> Tensor:
    """scaled_dot_product_attention with the mask broadcast over queries."""
    gqa = query.shape[1] != key.shape[1]
    out = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask[:, None, None, :], enable_gqa=gqa
    )
    return out.masked_fill(~mask[:, None, :, None], 0) if mode == "qk" else out


def dense_sdpa(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, mode: str) -> Tensor:
    """scaled_dot_product_attention without a mask: masked attention pays if it is faster."""
    gqa = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, enable_gqa=gqa)


def eager(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, mode: str) -> Tensor:
    """matmul, softmax, matmul, as in most published code."""
    scores = (query / math.sqrt(query.shape[-1])) @ key.transpose(-1, -2)
    weights = scores.masked_fill(~mask[:, None, None, :], -math.inf).softmax(dim=-1)
    out = weights @ value
    return out.masked_fill(~mask[:, None, :, None], 0) if mode == "qk" else out


def gather_loop(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, mode: str) -> Tensor:
    """Gather, SDPA, scatter, one batch item after the other; works with ragged masks."""
    outs = []
    for q, k, v, m in zip(query, key, value, mask, strict=True):
        index = m.nonzero().squeeze(1)
        k, v = k.index_select(1, index), v.index_select(1, index)
        if mode == "qk":
            out = F.scaled_dot_product_attention(q.index_select(1, index)[None], k[None], v[None])
            outs.append(torch.zeros_like(q).index_copy(1, index, out[0]))
        else:
            outs.append(F.scaled_dot_product_attention(q[None], k[None], v[None])[0])
    return torch.stack(outs)


def gather_batched(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, mode: str) -> Tensor:
    """Gather, SDPA, scatter over the whole batch; needs equal counts in all items."""
    batch, heads, tokens, dim = key.shape
    flat = mask.nonzero()
    index = (flat[:, 0] * tokens + flat[:, 1]) if batch > 1 else flat[:, 1]

    def take(t: Tensor) -> Tensor:
        rows = t.transpose(1, 2).reshape(batch * tokens, heads, dim).index_select(0, index)
        return rows.view(batch, -1, heads, dim).transpose(1, 2)

    if mode == "k":
        gqa = query.shape[1] != heads
        return F.scaled_dot_product_attention(query, take(key), take(value), enable_gqa=gqa)
    out = F.scaled_dot_product_attention(take(query), take(key), take(value))
    rows = out.transpose(1, 2).reshape(-1, heads, dim)
    zeros = rows.new_zeros(batch * tokens, heads, dim)
    return zeros.index_copy(0, index, rows).view(batch, tokens, heads, dim).transpose(1, 2)


def gather_padded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, mode: str) -> Tensor:
    """Gather, SDPA, scatter, padded to the largest count; one call for ragged masks."""
    counts = mask.sum(dim=1)
    largest = int(counts.max())
    order = mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :largest]
    index = order[:, None, :, None].expand(-1, query.shape[1], -1, query.shape[-1])
    live = torch.arange(largest, device=mask.device) < counts[:, None]
    k, v = key.gather(2, index), value.gather(2, index)
    if mode == "k":
        return F.scaled_dot_product_attention(query, k, v, attn_mask=live[:, None, None, :])
    q = query.gather(2, index)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=live[:, None, None, :])
    out = out.masked_fill(~live[:, None, :, None], 0)
    return torch.zeros_like(query).scatter(2, index, out)


class Unsupported(Exception):
    """A peer cannot run a case, or is left out; the message is the reason."""


@dataclass(frozen=True)
class Peer:
    """One way to compute the answer.

    Attributes:
        name: in tables and files.
        label: in prose and plots.
        variants: functions; the fastest for a case is timed, and each must give the right answer.
        masked: False for attention without a mask: another answer, timed for comparison.
        waits: whether its call waits for the GPU, so that no CUDA graph can hold it.
    """

    name: str
    label: str
    variants: tuple[Attention, ...] = ()
    masked: bool = True
    waits: bool = False

    def candidates(self, case: Case, inputs: Inputs) -> Sequence[Attention]:
        """The functions that can run a case.

        Raises:
            Unsupported: this peer cannot run the case; the message says why.
        """
        return self.variants


class GatherPeer(Peer):
    """Gather, SDPA, scatter; with a single item all variants are the same."""

    def candidates(self, case: Case, inputs: Inputs) -> Sequence[Attention]:
        return self.variants if case.batch > 1 else self.variants[:1]


class EagerPeer(Peer):
    """Not measured where N x N tensors would fill the memory, or repeat a slow measurement."""

    def candidates(self, case: Case, inputs: Inputs) -> Sequence[Attention]:
        scores = case.batch * case.tokens**2
        held = (4 if case.trains else 2) * scores * inputs.query.element_size()
        if held > EAGER_LIMIT_BYTES:
            raise Unsupported(f"would hold {held / 2**30:.1f} GiB of N x N tensors")
        if scores >= EAGER_SLOW_SCORES and case.keep not in EAGER_SLOW_KEEPS:
            raise Unsupported("takes seconds, the same at every keep ratio; measured at 0.25")
        return self.variants


@dataclass(frozen=True)
class FlexPeer(Peer):
    """FlexAttention with the token mask as its block mask; ``prepare`` compiles it for a case."""

    prepare: Callable[[Tensor, str], Attention] = flex

    def candidates(self, case: Case, inputs: Inputs) -> Sequence[Attention]:
        on_cpu = case.device == "cpu"
        if on_cpu and case.trains:
            raise Unsupported("FlexAttention has no backward on the CPU")
        shape = (case.tokens, case.head_dim, case.batch)
        other_mode = case.mode != "k" and not on_cpu
        if case.keep != FLEX_KEEP or shape not in FLEX_SHAPES[case.device] or other_mode:
            raise Unsupported("compiling takes about 10 s for each case; measured in a few")
        try:
            variant = self.prepare(inputs.mask, case.mode)
            make_call(variant, case, inputs)()
        except Exception as error:  # a compiler's errors have many types
            raise Unsupported(f"does not compile here: {_first_line(error)}") from error
        return (variant,)


class GpuPeer(Peer):
    """What only some installations have, and some GPUs run."""

    def candidates(self, case: Case, inputs: Inputs) -> Sequence[Attention]:
        if case.device != "cuda":
            raise Unsupported("needs a GPU")
        try:
            for variant in self.variants:
                make_call(variant, case, inputs)()
        except Exception as error:  # this torch lacks it, or it does not know this GPU
            raise Unsupported(f"does not run here: {_first_line(error)}") from error
        return self.variants


class VarlenPeer(GpuPeer):
    """FlashAttention over packed sequences."""

    def candidates(self, case: Case, inputs: Inputs) -> Sequence[Attention]:
        if case.device != "cuda" or case.dtype == "float32":
            raise Unsupported("FlashAttention needs a GPU, and float16 or bfloat16")
        return super().candidates(case, inputs)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:120]


OURS = Peer("ours", "maskattn_kernels", (ours,))
GATHER = GatherPeer(
    "gather", "gather + SDPA + scatter", (gather_batched, gather_padded, gather_loop), waits=True
)
SDPA = Peer("sdpa", "masked SDPA", (masked_sdpa,))
EAGER = EagerPeer("eager", "eager dense", (eager,))
DENSE = Peer("dense", "SDPA without a mask", (dense_sdpa,), masked=False)
FLEX = FlexPeer("flex", "FlexAttention, mask built before", prepare=flex)
FLEX_MASK = FlexPeer("flex+mask", "FlexAttention with its mask", prepare=flex_with_mask)
VARLEN = VarlenPeer("varlen", "gather + varlen FlashAttention + scatter", (varlen,), waits=True)
VARLEN_NO_WAIT = VarlenPeer("varlen-nw", "varlen FlashAttention, nothing waits", (varlen_no_wait,))
FA4 = VarlenPeer("fa4-varlen", "gather + FlashAttention-4 + scatter", (fa4_varlen,), waits=True)
FA4_NO_WAIT = VarlenPeer("fa4-varlen-nw", "FlashAttention-4, nothing waits", (fa4_varlen_no_wait,))
OURS_CUDA = GpuPeer("cuda", "maskattn_kernels, backend cuda", (ours_cuda,))
OURS_FA4 = GpuPeer("fa4", "maskattn_kernels, backend fa4", (ours_fa4,))
#: The peers of a quick run, of the grid, of the grid on a GPU, and of the sweep over keep ratios.
QUICK_PEERS = (OURS, GATHER, SDPA, EAGER)
PEERS = (*QUICK_PEERS, FLEX, FLEX_MASK)
GPU_PEERS = (*PEERS, OURS_CUDA, OURS_FA4, VARLEN, VARLEN_NO_WAIT, FA4, FA4_NO_WAIT)
SWEEP_PEERS = (*QUICK_PEERS, DENSE)
#: The peers of few queries: those that do not hold a copy of the keys for each query head.
FEW_PEERS = (OURS, GATHER, SDPA)
BY_NAME = {peer.name: peer for peer in (*GPU_PEERS, DENSE)}


def make_call(attention: Attention, case: Case, inputs: Inputs) -> Callable[[], tuple[Tensor, ...]]:
    """Bind a peer to a case: a call without arguments that gives (out,) or (out, dq, dk, dv)."""

    def forward() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (attention(*inputs.operands, inputs.mask, case.mode),)

    def forward_backward() -> tuple[Tensor, ...]:
        out = attention(*inputs.operands, inputs.mask, case.mode)
        return (out.detach(), *torch.autograd.grad(out, inputs.operands, inputs.dout))

    return forward_backward if case.trains else forward
