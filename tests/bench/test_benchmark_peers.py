# SPDX-License-Identifier: BSD-3-Clause
"""The peers of the benchmark give the right answer, or say why they leave; the oracle is right."""

import math
import sys
from types import ModuleType

import pytest
import torch
from repository import ROOT
from torch.nn.functional import scaled_dot_product_attention

from maskattn_kernels.benchmark import check, peers
from maskattn_kernels.benchmark.cases import (
    FORWARD,
    TRAIN,
    Case,
    Inputs,
    make_inputs,
)

RESULTS = [*(ROOT / "bench").rglob("*.json")]
TINY = Case(64, 16, mode="qk", keep=0.25)
VARIANTS = [v for p in peers.QUICK_PEERS for v in p.variants]


@pytest.mark.parametrize("mode", ["k", "qk"])
def test_oracle_is_dense_autograd_in_float64(mode, monkeypatch):
    monkeypatch.setattr(check, "BLOCK_SCORES", 7 * 12)  # blocks of 7 rows: several, the last ragged
    case = Case(48, 5, batch=2, mode=mode, phase=TRAIN)
    inputs = make_inputs(case)
    q, k, v = (t.detach().double().requires_grad_() for t in inputs.operands)
    scores = (q @ k.mT / math.sqrt(5)).masked_fill(~inputs.mask[:, None, None, :], -math.inf)
    out = scores.softmax(-1) @ v
    if mode == "qk":
        out = out * inputs.mask[:, None, :, None]
    expected = (out, *torch.autograd.grad(out, (q, k, v), inputs.dout.double()))
    for got, want in zip(check.oracle(case, inputs), expected, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.__name__)
@pytest.mark.parametrize("phase", [FORWARD, TRAIN])
@pytest.mark.parametrize("mode", ["k", "qk"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_peer_gives_the_right_answer(variant, phase, mode, dtype, batch):
    case = Case(65, 16, batch, mode, 0.3, dtype, phase)
    inputs = make_inputs(case)
    answer = peers.make_call(variant, case, inputs)()
    assert len(answer) == (4 if phase == TRAIN else 1)
    assert check.check(case, answer, check.oracle(case, inputs)) <= check.TOLERANCE[dtype]


@pytest.mark.parametrize("variant", [peers.gather_loop, peers.gather_padded, peers.ours])
@pytest.mark.parametrize("mode", ["k", "qk"])
def test_ragged_masks(variant, mode):
    case = Case(40, 8, batch=2, mode=mode, phase=TRAIN)
    inputs = make_inputs(case)
    mask = inputs.mask.clone()
    mask[1, :30] = True
    inputs = Inputs(*inputs.operands, mask, inputs.dout)
    answer = peers.make_call(variant, case, inputs)()
    check.check(case, answer, check.oracle(case, inputs))


class Undefined(torch.autograd.Function):
    """Gradients of rows past the last sequence are whatever the memory held."""

    @staticmethod
    def forward(ctx, t, rows):
        ctx.rows = rows
        return t.view_as(t)

    @staticmethod
    def backward(ctx, grad):
        return grad.index_fill(0, torch.arange(ctx.rows, len(grad)), math.nan), None


def varlen_attn(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k):
    """What torch's does, on the CPU."""
    q_ends, k_ends = cu_seq_q.tolist(), cu_seq_k.tolist()
    assert max_q >= cu_seq_q.diff().max() and max_k >= cu_seq_k.diff().max()
    query = Undefined.apply(query, q_ends[-1])
    key, value = (Undefined.apply(t, k_ends[-1]) for t in (key, value))
    outs = []
    for i in range(len(q_ends) - 1):
        q = query[q_ends[i] : q_ends[i + 1]].transpose(0, 1)
        k, v = (t[k_ends[i] : k_ends[i + 1]].transpose(0, 1) for t in (key, value))
        outs.append(scaled_dot_product_attention(q[None], k[None], v[None])[0].transpose(0, 1))
    outs.append(torch.full_like(query[q_ends[-1] :], math.nan))
    return torch.cat(outs)


@pytest.mark.parametrize("variant", [peers.varlen, peers.varlen_no_wait])
@pytest.mark.parametrize("mode", ["k", "qk"])
def test_varlen_takes_the_right_rows(variant, mode, monkeypatch):
    """The attention itself runs on a GPU only; here its rows come from a stand-in."""
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    test_ragged_masks(variant, mode)


@pytest.mark.parametrize("variant", [peers.fa4_varlen, peers.fa4_varlen_no_wait])
@pytest.mark.parametrize("mode", ["k", "qk"])
def test_fa4_takes_the_right_rows(variant, mode, monkeypatch):
    def function(q, k, v, *, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k):
        return varlen_attn(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k), None

    package, cute = ModuleType("flash_attn"), ModuleType("flash_attn.cute")
    cute.flash_attn_varlen_func = function
    monkeypatch.setitem(sys.modules, "flash_attn", package)
    monkeypatch.setitem(sys.modules, "flash_attn.cute", cute)
    test_ragged_masks(variant, mode)


def test_varlen_says_why_it_leaves():
    with pytest.raises(peers.Unsupported, match="needs a GPU, and float16"):
        peers.VARLEN.candidates(TINY, make_inputs(TINY))
    with pytest.raises(peers.Unsupported, match="needs a GPU, and float16"):
        peers.FA4.candidates(TINY, make_inputs(TINY))


@pytest.mark.parametrize("bad", [1e-3, math.nan])
@pytest.mark.parametrize("place", range(4))
def test_a_wrong_answer_is_found_in_every_tensor(bad, place):
    case = Case(64, 16, mode="k", phase=TRAIN)
    right = check.oracle(case, make_inputs(case))
    answer = [t.clone() for t in right]
    answer[place][0, 0, 3] += bad * answer[place].norm()
    name = ("out", "dq", "dk", "dv")[place]
    with pytest.raises(check.WrongResult, match=f"^{name} is off by"):
        check.check(case, answer, right)


def test_eager_leaves_where_it_would_fill_the_memory():
    inputs = make_inputs(TINY)
    large = Case(32768, 64, batch=1)
    with pytest.raises(peers.Unsupported, match=r"would hold 8\.0 GiB"):
        peers.EAGER.candidates(large, inputs)
    again = Case(4096, 64, batch=8, keep=0.5)
    with pytest.raises(peers.Unsupported, match="the same at every keep ratio"):
        peers.EAGER.candidates(again, inputs)
    assert peers.EAGER.candidates(Case(4096, 64, batch=8, keep=0.25), inputs)
    assert peers.EAGER.candidates(TINY, inputs)


def test_flex_says_why_it_leaves():
    inputs = make_inputs(TINY)
    with pytest.raises(peers.Unsupported, match="compiling takes"):
        peers.FLEX.candidates(TINY, inputs)
    with pytest.raises(peers.Unsupported, match="no backward on the CPU"):
        peers.FLEX.candidates(Case(4096, 64, phase=TRAIN), inputs)
