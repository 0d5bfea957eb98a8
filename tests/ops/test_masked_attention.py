# SPDX-License-Identifier: BSD-3-Clause
"""The case table on every backend, tier and dtype: all results against the oracle."""

import pytest
import torch
from cases import CASES, Case, make
from harness import TARGETS, Target, arguments, check_against_oracle, moved, ran_on, trimmed
from poison import poisoned

from maskattn_kernels import masked_attention
from maskattn_kernels.op_table import OPS


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("target", TARGETS, ids=str, indirect=True)
def test_results_and_gradients(target: Target, case: Case) -> None:
    check_against_oracle(target, trimmed(case, target))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(
    "target",
    [t for t in TARGETS if t.backend in OPS and OPS[t.backend].infer],
    ids=str,
    indirect=True,
)
def test_without_gradients_the_same(target: Target, case: Case) -> None:
    """No gradient, no list of tokens to keep: a shorter way, to the same bits."""
    x = moved(make(trimmed(case, target), target.dtype), target.device)
    kwargs = arguments(x) | {"key_bias": x.key_bias, "return_lse": True}
    qkv = (x.query, x.key, x.value)
    leaves = [t.detach().requires_grad_() for t in qkv]
    long = masked_attention(*leaves, **kwargs, backend=target.backend)
    for backend in (None, "cpu") if target.backend == "cpu" else (target.backend,):
        with torch.no_grad(), ran_on(target.backend):
            short = masked_attention(*qkv, **kwargs, backend=backend)
        for got, expected in zip(short, long, strict=True):
            assert torch.equal(got, expected) and got.stride() == expected.stride()
    # And what is not selected is not looked at.
    dirty = poisoned(x, ("query", "key", "value", "key_bias"), torch.nan)
    kwargs["key_bias"] = dirty.key_bias
    with torch.no_grad():
        again = masked_attention(
            dirty.query, dirty.key, dirty.value, **kwargs, backend=target.backend
        )
    for got, expected in zip(again, long, strict=True):
        assert torch.equal(got, expected)


def test_allocations_are_poisoned() -> None:
    """The fixture that makes an unwritten result visible does so."""
    assert torch.empty(3).isnan().all()
