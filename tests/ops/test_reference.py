# SPDX-License-Identifier: BSD-3-Clause
"""The reference backend by itself: it works in blocks, and no block changes the result."""

from typing import Any

import pytest
import torch
from cases import BY_NAME, Case, make
from harness import Target, check_against_oracle, run
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from maskattn_kernels.backends import reference

TARGET = Target("reference", torch.float32)


class Largest(TorchDispatchMode):
    """The size of the largest tensor that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = result if isinstance(result, tuple | list) else (result,)
        self.numel = max(self.numel, *(t.numel() for t in tensors if isinstance(t, Tensor)), 0)
        return result


def test_never_an_n_by_n_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forward and backward hold blocks of scores, and tensors of the size of query."""
    monkeypatch.setattr(reference, "MAX_BLOCK_SCORES", 1 << 12)
    x = make(Case("long", 1, 1, 1, 1000, 1000, 16), torch.float32)
    query_index = reference.select_tokens(x.query_mask.unsqueeze(1))
    key_index = reference.select_tokens(x.key_mask.unsqueeze(1))
    call = (x.query, x.key, x.value)
    with Largest() as largest:
        out, lse = reference.fwd(*call, *query_index, *key_index, None, 0.25)
        reference.bwd(x.dout, x.dlse, *call, out, lse, *query_index, *key_index, None, 0.25)
    assert x.query.numel() <= largest.numel < 1000 * 1000 / 50


@pytest.mark.parametrize("block", [1, 100, 1000])
@pytest.mark.parametrize("name", ["everything", "cross_130_1", "bias_normal"])
def test_any_block_size(name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Down to blocks of one row."""
    whole = run(TARGET, make(BY_NAME[name], torch.float32))
    monkeypatch.setattr(reference, "MAX_BLOCK_SCORES", block)
    check_against_oracle(TARGET, BY_NAME[name])
    for result in run(TARGET, make(BY_NAME[name], torch.float32)).items():
        torch.testing.assert_close(result[1], whole[result[0]], rtol=1e-4, atol=1e-5)
