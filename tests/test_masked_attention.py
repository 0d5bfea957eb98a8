# SPDX-License-Identifier: BSD-3-Clause
"""The case table on every backend, tier and dtype: all results against the oracle."""

import pytest
import torch
from cases import CASES, Case
from harness import TARGETS, Target, check_against_oracle, trimmed


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("target", TARGETS, ids=str, indirect=True)
def test_results_and_gradients(target: Target, case: Case) -> None:
    check_against_oracle(target, trimmed(case, target))


def test_allocations_are_poisoned() -> None:
    """The fixture that makes an unwritten result visible does so."""
    assert torch.empty(3).isnan().all()
