# SPDX-License-Identifier: BSD-3-Clause
"""Calls of the raw ops whose arguments do not fit together, or whose index lists are made by hand.

An op refuses such a call or runs it inside its tensors. `make sanitize` runs this file under the
address sanitizer, which ends the process at the first access outside of them.
"""

import pytest
import torch
from harness import Target
from hostile import REFUSALS, call_at_random, call_with_masks

from maskattn_kernels import TokenIndex, masked_attention
from maskattn_kernels.op_table import OPS

FAR = (5, 1_000_000, 2**31 - 100)  # how far outside of a sequence of 64 tokens a list lies


def lists_of_two_images(offset: int) -> TokenIndex:
    """Lists of 64 tokens, that of the second image outside of it, behind one count for both."""
    indices = torch.arange(64, dtype=torch.int32).repeat(2, 1, 1)
    indices[1] += offset
    return TokenIndex(indices, torch.tensor([[64]], dtype=torch.int32).expand(2, 1))


@pytest.mark.parametrize("offset", FAR)
@pytest.mark.parametrize("axis", ["batch", "heads"])
@pytest.mark.parametrize("argument", ["key_mask", "query_mask"])
def test_expanded_counts_do_not_hide_a_list(
    target: Target, argument: str, axis: str, offset: int
) -> None:
    """A count of stride 0 serves every list, and every list is still checked."""
    if target.backend == "triton":
        pytest.skip("a GPU cannot raise without waiting for it: the kernels clamp")
    index = lists_of_two_images(offset)
    q = torch.zeros(2, 1, 64, 8, dtype=target.dtype)
    if axis == "heads":
        index, q = TokenIndex(*(t.transpose(0, 1) for t in index)), q.transpose(0, 1)
    with pytest.raises(ValueError, match=rf"^{argument}\.indices: "):
        masked_attention(q, q, q, **{argument: index}, backend=target.backend)


@pytest.mark.parametrize("shape", [(1, 2), (2, 1), (1, 1)])
def test_raw_op_checks_the_lists_behind_broadcast_counts(
    target: Target, shape: tuple[int, int]
) -> None:
    """Counts of one head beside the lists of two: every list is read as far as that count."""
    if target.backend == "triton":
        pytest.skip("a GPU cannot raise without waiting for it: the kernels clamp")
    indices = torch.tensor([0, 8, 8, 8, 8, 8, 8, 8], dtype=torch.int32).repeat(2, 2, 1)
    indices[0, 0] = torch.arange(8)
    counts = torch.full(shape, 8, dtype=torch.int32)
    q = torch.zeros(2, 2, 8, 4, dtype=target.dtype)
    with pytest.raises(REFUSALS, match=r"key_mask\.indices: "):
        OPS[target.backend].fwd(q, q, q, None, None, indices, counts, None, 1.0)


@pytest.mark.parametrize(
    ("entries", "count"),
    [
        ([0, 0, 1, 4], 3),
        ([1, 0, 4, 4], 2),
        ([-1, 0, 1, 4], 3),
        ([0, 1, 4, 4], 3),
        ([0, 1, 2, 3], -1),
        ([0, 1, 2, 3], 5),
        ([0, 1, 2, 3], 2**31 - 1),
        ([0, 1, 2, 3], -(2**31)),
    ],
)
@pytest.mark.parametrize("argument", ["key_mask", "query_mask"])
def test_lists_that_are_none(target: Target, argument: str, entries: list[int], count: int) -> None:
    """Duplicates, disorder, tokens and counts out of range: every backend on the CPU refuses."""
    if target.backend == "triton":
        pytest.skip("a GPU cannot raise without waiting for it: the kernels clamp")
    index = TokenIndex(
        torch.tensor([[entries]], dtype=torch.int32), torch.tensor([[count]], dtype=torch.int32)
    )
    q = torch.zeros(1, 1, 4, 8, dtype=target.dtype, requires_grad=True)
    for grad in (True, False):
        with torch.set_grad_enabled(grad), pytest.raises(ValueError, match=rf"^{argument}\."):
            masked_attention(q, q, q, **{argument: index}, backend=target.backend)


def test_tensor_without_its_storage(target: Target) -> None:
    """As sharded training frees it between uses: the shape is there, the memory is not."""
    q = torch.zeros(1, 1, 4, 8, dtype=target.dtype)
    freed, shrunk = q.clone(), torch.zeros(1, 1, 8, 8, dtype=target.dtype)[:, :, 4:]
    freed.untyped_storage().resize_(0)
    shrunk.untyped_storage().resize_(4 * 8 * q.element_size())
    for bad in (freed, shrunk):
        with pytest.raises(REFUSALS, match=r"^value: "):
            OPS[target.backend].fwd(q, q, bad, *(None,) * 5, 1.0)


def test_no_tokens_of_many_images_return_at_once(target: Target) -> None:
    q = torch.zeros(1, 1, 0, 8, dtype=target.dtype).expand(2**40, 1, 0, 8)
    out, _ = OPS[target.backend].fwd(q, q, q, *(None,) * 5, 1.0)
    assert out.shape == q.shape


@pytest.mark.parametrize("seed", range(4))
def test_random_calls(target: Target, seed: int) -> None:
    """Refused by a backend on the CPU exactly when the reference refuses; else equal to it."""
    on_cpu = target.backend == "cpu"
    calls = 400 if on_cpu else 40
    ran = call_at_random(OPS[target.backend], target.dtype, seed, calls, agree=on_cpu)
    assert calls // 8 < ran < calls


@pytest.mark.parametrize("seed", range(2))
def test_random_calls_with_masks(target: Target, seed: int) -> None:
    """The ops that list masks themselves refuse what masked_attention refuses, and nothing else."""
    if OPS[target.backend].masks_bwd is None:
        pytest.skip(f"{target.backend} has no op of that kind")
    assert 50 < call_with_masks(OPS[target.backend], target.dtype, seed, calls=200) < 200
