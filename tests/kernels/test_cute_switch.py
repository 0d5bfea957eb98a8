# SPDX-License-Identifier: BSD-3-Clause
"""The switch of the kernels in CuTe-DSL: when the CUDA op takes one, and what it says if none fits.

On the twin, whose library has one such kernel, for bfloat16 up to head dim 64, which it cannot run.
"""

import shutil

import pytest
import torch
import twin

from maskattn_kernels import masked_attention

pytestmark = pytest.mark.skipif(
    not shutil.which(twin.COMPILER), reason="needs a C++ compiler to build the twin"
)
CHOSEN = "fwd: an error that the twin cannot have"


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    twin.install(monkeypatch, twin.build())


def said(dtype: torch.dtype, head_dim: int = 64, tokens: int = 20) -> str:
    """The error of a call; empty if there is none."""
    q = torch.ones(1, 1, tokens, head_dim, dtype=dtype)
    mask = torch.ones(1, tokens, dtype=torch.bool)
    try:
        masked_attention(q, q, q, key_mask=mask, backend="twin")
    except RuntimeError as error:
        return str(error).splitlines()[0]
    return ""


@pytest.mark.parametrize("value", [None, "0"])
def test_it_is_off(monkeypatch: pytest.MonkeyPatch, value: str | None) -> None:
    monkeypatch.delenv("MASKATTN_CUDA_CUTE", raising=False)
    if value:
        monkeypatch.setenv("MASKATTN_CUDA_CUTE", value)
    assert said(torch.bfloat16) == ""


@pytest.mark.parametrize(
    ("dtype", "head_dim", "tokens", "why"),
    [
        (torch.bfloat16, 64, 20, CHOSEN),
        (torch.bfloat16, 8, 300, CHOSEN),
        (torch.float32, 64, 20, "expected bfloat16 or float16, got float32"),
        (torch.bfloat16, 20, 20, "(head_dim a multiple of 8), got others, with head_dim 20"),
        (torch.bfloat16, 72, 20, "or 10.0 with at most 128, got 9.0 with 72"),
    ],
)
def test_it_is_on(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, head_dim: int, tokens: int, why: str
) -> None:
    monkeypatch.setenv("MASKATTN_CUDA_CUTE", "1")
    found = said(dtype, head_dim, tokens)
    assert why in found and (why is CHOSEN or "MASKATTN_CUDA_CUTE: expected" in found)


def test_a_wrong_value_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASKATTN_CUDA_CUTE", "yes")
    assert "MASKATTN_CUDA_CUTE: expected 0 or 1, got 'yes'" in said(torch.bfloat16)
