# SPDX-License-Identifier: BSD-3-Clause
"""The highest scores of each row: the op of the C++ library, bit for bit against torch's ops."""

from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from maskattn_kernels.nn import make_selector
from maskattn_kernels.nn import rows as module
from maskattn_kernels.nn.rows import highest_of_rows
from maskattn_kernels.op_table import OPS

pytestmark = pytest.mark.skipif("cpu" not in OPS, reason="the compiled library is not built")


def by_torch(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    with patch.object(module, "in_plain_code", return_value=False):
        return highest_of_rows(scores, count)


SCORES = {
    "normal": lambda n: torch.randn(3, n),
    "ties": lambda n: torch.randint(-2, 3, (3, n)).float(),
    "equal": lambda n: torch.ones(3, n),
    "zeros_of_both_signs": lambda n: torch.zeros(3, n) * torch.randn(3, n),
    "strided": lambda n: torch.randn(3, 2 * n)[:, ::2],
    "columns": lambda n: torch.randn(n, 3).t(),
    "expanded": lambda n: torch.randn(1, n).expand(3, n),
}


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("length", [1, 2, 31, 500])
def test_op_gives_the_bits_of_torch(kind: str, length: int) -> None:
    scores = SCORES[kind](length)
    for count in {1, length // 4 or 1, length - 1 or 1, length}:
        (mask, border), (right, right_border) = (
            highest_of_rows(scores, count),
            by_torch(scores, count),
        )
        assert torch.equal(mask, right) and torch.equal(border, right_border)
        assert (mask.sum(1) == count).all()


@pytest.mark.parametrize("name", ["topk", "gumbel-topk", "threshold", "gumbel"])
def test_selectors_choose_as_with_torch(name: str) -> None:
    selector = make_selector(name, 0.3, min_keep=5).eval()
    logits = torch.randn(2, 1, 9, 11).round(decimals=1)
    with patch.object(module, "in_plain_code", return_value=False):
        expected = selector(logits)
    for got, right in zip(selector(logits)[:4], expected[:4], strict=True):
        assert torch.equal(got, right)


def test_any_number_is_safe() -> None:
    """NaN and Inf, which selectors do not let through: as many as fit, and nothing outside."""
    scores = torch.tensor([[torch.nan, torch.inf, -torch.inf, 1.0, -torch.nan, 1.0]])
    for count in range(1, 7):
        mask, border = torch.ops.maskattn.cpu_select_highest(scores, count)
        assert mask.shape == scores.shape and border.shape == (1, 1) and mask.sum() <= count


def test_wrong_arguments_are_refused() -> None:
    op, scores = torch.ops.maskattn.cpu_select_highest, torch.randn(2, 4)
    for count in (0, 5, -1):
        with pytest.raises(RuntimeError, match=r"^count: expected 1 to 4, got"):
            op(scores, count)
    with pytest.raises(RuntimeError, match=r"^scores: expected shape"):
        op(scores[0], 1)
    with pytest.raises(RuntimeError, match=r"^scores: expected dtype torch.float32"):
        op(scores.double(), 1)
    assert op(scores[:0], 1)[0].shape == (0, 4)


def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.maskattn.cpu_select_highest.default, (torch.randn(2, 7), 3))
