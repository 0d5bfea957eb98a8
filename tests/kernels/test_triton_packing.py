# SPDX-License-Identifier: BSD-3-Clause
"""Rows that the Triton kernels copy before many programs read them: same results, to the last
bit."""

from dataclasses import replace

import pytest
import torch
from cases import Case, make
from harness import INTERPRETED, Target, check_against_oracle, run
from interpreter import make_strict
from odd_rows import (
    check_query_without_keys_is_not_read,
    check_unselected_are_invisible,
    laid_out,
)
from torch import Tensor

from maskattn_kernels import TokenIndex, masked_attention

choices = pytest.importorskip("maskattn_kernels.backends.triton_choices")
pytestmark = pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1")
FP32 = Target("triton", torch.float32)
# More tokens than the interpreter calls short; rows of a width that can be aligned.
CASE = Case("packed", 1, 4, 2, 50, 45, 48, keys=0.4, queries=0.4, per_head=True, bias="some_inf")


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    make_strict(monkeypatch)


@pytest.fixture
def packed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The places of the pairs that are packed from now on: 1 and 2 are key and value forward; 0 and
    2 are dout and query, 3 and 4 key and value, backward."""
    from maskattn_kernels.backends import triton_backward_plan, triton_forward_plan

    found = []

    def noting(a: Tensor, b: Tensor, places: tuple[int, int], *rest: object) -> object:
        found.append(tuple(places))
        return choices.pack(a, b, places, *rest)

    for module in (triton_forward_plan, triton_backward_plan):
        monkeypatch.setattr(module, "pack", noting)
    return found


KEYS, BACKWARD = [(1, 2)], [(0, 2), (3, 4)]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ((), []),
        (("key",), KEYS + BACKWARD),
        (("value",), KEYS + BACKWARD),
        (("query",), BACKWARD),
        (("dout",), BACKWARD),
    ],
    ids=lambda x: "-".join(x) if x and isinstance(x, tuple) else "",
)
def test_rows_that_are_not_aligned(
    fields: tuple[str, ...], expected: list, packed: list[tuple[int, int]]
) -> None:
    x = make(CASE, FP32.dtype)
    results = run(FP32, laid_out(x, fields))
    assert packed == expected
    for name, right in run(FP32, x).items():
        assert torch.equal(results[name], right), name


@pytest.mark.parametrize("head_dim", [1, 46, 129])
@pytest.mark.parametrize("masks", ["both", "none"])
def test_widths_that_are_never_aligned(
    head_dim: int, masks: str, packed: list[tuple[int, int]]
) -> None:
    """Packed rows end with zeros; without a mask there is no index to follow."""
    case = replace(CASE, heads=2, kv_heads=1, head_dim=head_dim)
    check_against_oracle(FP32, case if masks == "both" else replace(case, keys=None, queries=None))
    assert set(packed) == {*KEYS, *BACKWARD}


@pytest.mark.parametrize(("queries", "keys", "forward"), [(20, 20, 0), (20, 45, 0), (45, 20, 1)])
def test_rows_that_few_tokens_read_are_not_packed(
    queries: int, keys: int, forward: int, packed: list[tuple[int, int]]
) -> None:
    case = replace(CASE, heads=1, kv_heads=1, query_len=queries, key_len=keys, head_dim=46)
    run(FP32, make(case, FP32.dtype))
    assert packed == KEYS * forward + (BACKWARD if max(queries, keys) > 32 else [])


@pytest.mark.parametrize("poison", [torch.nan, torch.inf], ids=str)
def test_unselected_tokens_are_invisible(poison: float) -> None:
    check_unselected_are_invisible(FP32, CASE, poison)


def test_query_without_keys_is_not_read() -> None:
    check_query_without_keys_is_not_read(FP32, CASE)


def test_index_made_by_hand_stays_inside(packed: list[tuple[int, int]]) -> None:
    """Entries that name no token are not packed, and counts past the end are the end."""
    q, k = torch.randn(1, 1, 40, 46), torch.randn(1, 1, 40, 46)
    wild = torch.tensor([[[-(2**31), -1, 3, 5, 40, 2**31 - 1, *range(6, 40)]]], dtype=torch.int32)
    mask = torch.zeros(1, 40, dtype=torch.bool)
    mask[:, [3, 5]] = True
    some = TokenIndex(wild, torch.tensor([[6]], dtype=torch.int32))
    out = masked_attention(q, k, k, key_mask=some, backend="triton")
    assert torch.equal(out, masked_attention(q, k, k, key_mask=mask, backend="triton"))
    every = TokenIndex(torch.arange(40).int().view(1, 1, 40), torch.tensor([[99]]).int())
    x = q.clone().requires_grad_()
    masked_attention(x, x, x, key_mask=every, query_mask=every, backend="triton").sum().backward()
    assert set(packed) == {*KEYS, *BACKWARD}
