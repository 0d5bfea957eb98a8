# SPDX-License-Identifier: BSD-3-Clause
"""select_tokens and TokenIndex: positions, counts, layouts, sharing."""

import pytest
import torch
import torch.utils._pytree as pytree
from harness import Target, ran_on
from torch import Tensor

from maskattn_kernels import TokenIndex, masked_attention, select_tokens
from maskattn_kernels.op_table import OPS


def positions(mask: Tensor) -> tuple[Tensor, Tensor]:
    """(indices, counts) by a plain loop."""
    n = mask.shape[-1]
    counts = torch.zeros(mask.shape[:-1], dtype=torch.int32)
    indices = torch.full(mask.shape, n, dtype=torch.int32)
    for row in torch.cartesian_prod(*(torch.arange(s) for s in mask.shape[:-1])).tolist():
        where = mask[tuple(row)].nonzero().flatten().int()
        counts[tuple(row)] = len(where)
        indices[tuple(row)][: len(where)] = where
    return indices, counts


MASKS = {
    "half": torch.rand(2, 3, 100) < 0.5,
    "sparse": torch.rand(2, 3, 1000) < 0.01,
    "none": torch.zeros(2, 1, 70, dtype=torch.bool),
    "all": torch.ones(1, 3, 70, dtype=torch.bool),
    "long": torch.rand(1, 1, 20_000) < 0.3,
    "one_token": torch.tensor([[[True]], [[False]]]),
    "expanded": (torch.rand(1, 1, 65) < 0.5).expand(3, 2, 65),
    "strided": (torch.rand(2, 3, 130) < 0.5)[..., ::2],
    "transposed": (torch.rand(65, 3, 2) < 0.5).transpose(0, 2),
    "stride_zero_tokens": torch.ones(2, 2, 1, dtype=torch.bool).expand(2, 2, 33),
    "offset": (torch.rand(2 * 3 * 33 + 1) < 0.5)[1:].view(2, 3, 33),
}


@pytest.mark.parametrize("name", MASKS)
def test_positions_of_selected_tokens(target: Target, name: str) -> None:
    mask = MASKS[name]
    with ran_on(target.backend):
        indices, counts = OPS[target.backend].select_tokens(mask)
    expected_indices, expected_counts = positions(mask)
    assert indices.dtype == counts.dtype == torch.int32
    assert torch.equal(indices, expected_indices) and indices.is_contiguous()
    assert torch.equal(counts, expected_counts) and counts.is_contiguous()


@pytest.mark.parametrize("shape", [(0, 2, 5), (2, 0, 5), (2, 2, 0), (0, 0, 0)])
def test_zero_sizes(target: Target, shape: tuple[int, ...]) -> None:
    with ran_on(target.backend):
        indices, counts = OPS[target.backend].select_tokens(torch.ones(shape, dtype=torch.bool))
    assert indices.shape == shape and counts.shape == shape[:2]
    assert not counts.any()


def test_mask_bytes_other_than_one(target: Target) -> None:
    """A bool tensor viewed from bytes holds 2 or 255 for True: it is still one token."""
    mask = torch.tensor([[[0, 255, 2, 0, 1] * 30]], dtype=torch.uint8).view(torch.bool)
    with ran_on(target.backend):
        _, counts = OPS[target.backend].select_tokens(mask)
    assert counts.item() == 90


def test_public_function_takes_masks_with_and_without_heads() -> None:
    mask = torch.rand(2, 50) < 0.5
    index = select_tokens(mask)
    assert isinstance(index, TokenIndex)
    assert index.indices.shape == (2, 1, 50) and index.counts.shape == (2, 1)
    assert all(torch.equal(a, b) for a, b in zip(index, select_tokens(mask[:, None]), strict=True))


def test_one_index_serves_many_calls(target: Target) -> None:
    """One index for keys and queries, in several calls, gives what the mask gives, bit for bit."""
    q, k, v = torch.randn(3, 2, 2, 60, 8).to(target.dtype).unbind()
    mask = torch.rand(2, 60) < 0.4
    index = select_tokens(mask)
    with ran_on(target.backend):
        from_mask = masked_attention(
            q, k, v, key_mask=mask, query_mask=mask, backend=target.backend
        )
        for _ in range(2):
            out = masked_attention(
                q, k, v, key_mask=index, query_mask=index, backend=target.backend
            )
            assert torch.equal(out, from_mask)


def test_is_a_pytree() -> None:
    index = select_tokens(torch.rand(1, 9) < 0.5)
    doubled = pytree.tree_map(lambda t: t * 2, index)
    assert isinstance(doubled, TokenIndex)
    assert torch.equal(doubled.counts, 2 * index.counts)


def test_indices_out_of_range_raise(target: Target) -> None:
    """A hand-made index that names a token past the end is refused, not read."""
    if target.backend == "triton":
        pytest.skip("a GPU cannot raise without waiting for it: see test_triton.py")
    q = torch.randn(1, 1, 8, 4).to(target.dtype)
    index = TokenIndex(
        torch.tensor([[[1, 8, 8, 8, 8, 8, 8, 8]]], dtype=torch.int32), torch.tensor([[2]]).int()
    )
    with pytest.raises(ValueError, match=r"^key_mask.indices: "):
        masked_attention(q, q, q, key_mask=index, backend=target.backend)
    with pytest.raises(ValueError, match=r"^query_mask.indices: "):
        masked_attention(q, q, q, query_mask=index, backend=target.backend)
