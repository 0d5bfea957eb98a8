# SPDX-License-Identifier: BSD-3-Clause
"""Rows that the CUDA kernels pack before they stream them: same results, to the last bit."""

import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import twin
from cases import Case, make
from harness import RESULTS, Target, check_against_oracle, run
from odd_rows import (
    STREAMED,
    check_query_without_keys_is_not_read,
    check_unselected_are_invisible,
    laid_out,
)
from torch import Tensor

pytestmark = pytest.mark.skipif(
    not shutil.which(twin.COMPILER), reason="needs a C++ compiler to build the twin"
)
BF16 = Target("twin", torch.bfloat16)
# Long enough that rows which are not aligned are packed, and of a width that can be aligned.
CASE = Case("packed", 2, 4, 2, 300, 290, 48, keys=0.3, queries=0.3, per_head=True, bias="some_inf")
# Two selections, forward, delta, dkdv, dq.
UNPACKED = 6


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    twin.install(monkeypatch, twin.build())


def counted(call: Callable[[], dict[str, Tensor]]) -> tuple[dict[str, Tensor], int]:
    before = twin.launches(twin.build())
    results = call()
    return results, twin.launches(twin.build()) - before


@pytest.mark.parametrize(
    ("fields", "launches"),
    [
        ((), UNPACKED),
        (("key",), UNPACKED + 2),  # by the forward pass, and once more for dq
        (("value",), UNPACKED + 2),
        (("query",), UNPACKED),  # by the kernel that computes delta
        (("dout",), UNPACKED),
        (STREAMED, UNPACKED + 2),
    ],
    ids=lambda x: "-".join(x) if isinstance(x, tuple) else "",
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_rows_that_are_not_aligned(
    dtype: torch.dtype, fields: tuple[str, ...], launches: int
) -> None:
    target = Target("twin", dtype)
    x = make(CASE, dtype)
    expected = run(target, x)
    results, count = counted(lambda: run(target, laid_out(x, fields)))
    assert count == launches
    for name in RESULTS:
        assert torch.equal(results[name], expected[name]), name


@pytest.mark.parametrize("head_dim", [46, 129])
@pytest.mark.parametrize("masks", ["both", "none"])
def test_widths_that_are_never_aligned(head_dim: int, masks: str) -> None:
    """Packed rows are padded with zeros; without a mask there is no index to follow."""
    case = replace(CASE, batch=1, heads=2, kv_heads=1, head_dim=head_dim)
    check_against_oracle(BF16, case if masks == "both" else replace(case, keys=None, queries=None))


@pytest.mark.parametrize(("queries", "keys"), [(4100, 40), (40, 4100)])
def test_many_readers(queries: int, keys: int) -> None:
    """Aligned rows too: keys for the many queries, queries and their gradients for the keys."""
    case = replace(CASE, batch=1, query_len=queries, key_len=keys, head_dim=16, queries=0.1)
    x = make(case, BF16.dtype)
    _, count = counted(lambda: run(BF16, x))
    # Two launches more, for keys in the forward pass and for dq, and one that adds up shares: of
    # queries in the backward pass, or of keys in the forward pass.
    assert count - UNPACKED == (3 if queries > keys else 1)
    check_against_oracle(BF16, case)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf], ids=str)
def test_unselected_tokens_are_invisible(poison: float) -> None:
    check_unselected_are_invisible(BF16, CASE, poison)


def test_query_without_keys_is_not_read() -> None:
    check_query_without_keys_is_not_read(BF16, CASE)
