# SPDX-License-Identifier: BSD-3-Clause
"""The CUDA kernels as they ship, run on the CPU: every case against the oracle, every race seen."""

import pytest
import torch
import twin
from cases import CASES, Case
from harness import FLOATS, Target, check_against_oracle


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    twin.install(monkeypatch, twin.build())


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_results_and_gradients(dtype: torch.dtype, case: Case) -> None:
    check_against_oracle(Target("twin", dtype), case)
