# SPDX-License-Identifier: BSD-3-Clause
"""Zero sizes, nothing selected, rows that see no key: zeros and -inf, never NaN or a crash."""

import itertools

import pytest
import torch
from cases import Case, make
from harness import Target, run

from maskattn_kernels import masked_attention

SIZES = [s for s in itertools.product((0, 2), (0, 2), (0, 3), (0, 5)) if 0 in s]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("selected", [None, "none", "all"])
def test_zero_sizes(target: Target, sizes: tuple[int, ...], selected: str | None) -> None:
    """Every zero among batch, heads, queries and keys; peers divide by the length and die."""
    b, h, nq, nk = sizes
    x = make(
        Case("zero", b, h, h, nq, nk, keys=selected, queries=selected, bias="normal"), target.dtype
    )
    results = run(target, x)
    for name in ("out", "dq", "dk", "dv"):
        assert not results[name].any(), name
    assert (results["lse"] == -torch.inf).all()
    assert not results["dbias"].any()


@pytest.mark.parametrize(("keys", "queries"), [("none", "all"), ("all", "none"), ("none", "none")])
def test_nothing_selected(target: Target, keys: str, queries: str) -> None:
    """All-False masks, forward and backward: lse is exactly -inf, not a large finite number."""
    x = make(Case("nothing", query_len=70, key_len=90, keys=keys, queries=queries), target.dtype)
    results = run(target, x)
    assert (results["lse"] == -torch.inf).all()
    for name in ("out", "dq", "dk", "dv"):
        assert torch.equal(results[name], torch.zeros_like(results[name])), name


def test_zero_head_dim() -> None:
    """Without features all scores are equal; only the reference takes that, by default."""
    q, k = torch.randn(1, 1, 3, 0), torch.randn(1, 1, 4, 0)
    out, lse = masked_attention(q, k, k, return_lse=True)
    assert out.shape == (1, 1, 3, 0)
    torch.testing.assert_close(lse, torch.full((1, 1, 3), 4.0).log())


def test_one_empty_row_keeps_shared_weights_finite(target: Target) -> None:
    """In nn.MultiheadAttention one row without keys makes every weight's gradient NaN."""
    weight = torch.randn(8, 8).to(target.dtype).requires_grad_()
    tokens = torch.randn(2, 1, 6, 8).to(target.dtype)
    mask = torch.tensor([[True] * 6, [False] * 6])
    x = tokens @ weight
    masked_attention(x, x, x, key_mask=mask, backend=target.backend).sum().backward()
    assert weight.grad.isfinite().all() and weight.grad.any()


def test_all_queries_share_one_key(target: Target) -> None:
    """dv of the one key is the sum over all queries."""
    case = Case("one_key", batch=1, heads=1, kv_heads=1, query_len=200, key_len=64, queries=None)
    x = make(case, target.dtype, keys="one")
    results = run(target, x)
    token = x.key_mask[0].nonzero().item()
    total = x.dout[0, 0].double().sum(0)
    tolerance = 200 * torch.finfo(target.dtype).eps
    torch.testing.assert_close(results["dv"][0, 0, token].double(), total, rtol=0, atol=tolerance)
    assert torch.equal(results["out"][0, 0], x.value[0, 0, token].expand(200, 16))


def test_low_scores_are_not_a_mask(target: Target) -> None:
    """All scores at -1e5: a finite stand-in for -inf would take these keys for masked ones."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randint(-1, 2, (1, 2, 40, 4), generator=g).to(target.dtype) for _ in range(3))
    mask = torch.rand(1, 40, generator=g) < 0.5
    bias = torch.full((1, 40), -1e5)
    kwargs = {"key_mask": mask, "scale": 1.0, "return_lse": True, "backend": target.backend}
    out, lse = masked_attention(q, k, v, key_bias=bias, **kwargs)
    unbiased, unbiased_lse = masked_attention(q, k, v, **kwargs)
    # A score near 1e5 is rounded to 2^-7, in log2 units at worst, which moves a weight as much.
    torch.testing.assert_close(out, unbiased, atol=0.02, rtol=0.02)
    torch.testing.assert_close(lse, unbiased_lse - 1e5, atol=0.02, rtol=0)
