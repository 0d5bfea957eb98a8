# SPDX-License-Identifier: BSD-3-Clause
"""Modules name the user's own arguments and shapes, not those that they hand to the op."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskattn_kernels import TokenIndex, masked_attention, select_tokens
from maskattn_kernels.nn import (
    DenseAttentionCore,
    GumbelSelector,
    MaskAttention2d,
    MaskedMultiheadAttention,
)

T, V, N = TypeError, ValueError, NotImplementedError
BATCH, TOKENS, WIDTH = 10, 2, 16


def multihead(batch_first: bool = False, **kwargs: Any) -> MaskedMultiheadAttention:
    return MaskedMultiheadAttention(WIDTH, 2, batch_first=batch_first, **kwargs)


def tokens(tokens: int = TOKENS, batch: int = BATCH, **kwargs: Any) -> Tensor:
    return torch.randn(tokens, batch, WIDTH, **kwargs)


def index(*shape: int) -> TokenIndex:
    return select_tokens(torch.ones(shape, dtype=torch.bool))


def pixels(mask: Any, core: str = "sparse", x: Tensor | None = None) -> Any:
    return MaskAttention2d(8, 2, core=core)(torch.randn(2, 8, 4, 4) if x is None else x, mask)


MULTIHEAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "batch of key": (
        lambda: multihead()(tokens(), tokens(batch=9), tokens(batch=9)), V,
        r"key: expected batch size 10 as query \(dimension 1, batch_first=False\), "
        r"got shape \(2, 9, 16\)",
    ),
    "batch of value": (
        lambda: multihead()(tokens(), tokens(), tokens(batch=9)), V,
        r"value: expected batch size 10 .*, got shape \(2, 9, 16\)",
    ),
    "batch_first forgotten": (
        lambda: multihead(True)(tokens(2, 9), tokens(3, 9), tokens(3, 9)), V,
        r"key: expected batch size 2 as query \(dimension 0, batch_first=True\), "
        r"got shape \(3, 9, 16\)",
    ),
    "tokens of value": (
        lambda: multihead()(tokens(), tokens(5), tokens(4)), V,
        r"value: expected 5 tokens as key \(dimension 0\), got shape \(4, 10, 16\)",
    ),
    "device of the padding": (
        lambda: multihead()(
            tokens(), tokens(), tokens(),
            key_padding_mask=torch.zeros(BATCH, TOKENS, dtype=torch.bool, device="meta"),
        ), V,
        "key_padding_mask: expected device cpu as key, got meta",
    ),
    "dtype": (
        lambda: multihead()(*[tokens(dtype=torch.bfloat16)] * 3), T,
        "query: expected the weights' dtype torch.float32, got torch.bfloat16",
    ),
    "dtype of value": (
        lambda: multihead()(tokens(), tokens(), tokens(dtype=torch.float64)), T,
        "value: expected the weights' dtype torch.float32, got torch.float64",
    ),
    "integers": (
        lambda: multihead()(*[torch.ones(2, 3, WIDTH, dtype=torch.int64)] * 3), T,
        "query: expected the weights' dtype torch.float32, got torch.int64",
    ),
    "dropout text": (lambda: multihead(dropout="a"), T, "dropout: expected a number .*, got str"),
    "dropout none": (lambda: multihead(dropout=None), T, "dropout: expected a number .*NoneType"),
    "kdim": (lambda: multihead(kdim=8.5), T, "kdim: expected a positive int, got float"),
    "from_mha": (
        lambda: MaskedMultiheadAttention.from_mha(nn.Linear(2, 2)), T,
        "mha: expected an nn.MultiheadAttention, got Linear",
    ),
}  # fmt: skip
PIXELS = {
    "index length": (lambda: pixels(index(2, 15)), V, r"mask\.indices: expected shape .* 16\)"),
    "index batch": (lambda: pixels(index(3, 16)), V, r"mask\.indices: .*got \(3, 1, 16\)"),
    "index heads": (lambda: pixels(index(2, 3, 16)), V, r"mask\.indices: .*got \(2, 3, 16\)"),
    "index, dense core": (lambda: pixels(index(3, 16), "dense"), V, r"mask\.indices: expected"),
    "index device": (
        lambda: pixels(index(2, 16).to("meta")), V,
        r"mask\.indices: expected x's device cpu, got meta",
    ),
    "index dtype": (
        lambda: pixels(TokenIndex(*(t.long() for t in index(2, 16)))), T,
        r"mask\.indices: expected dtype torch.int32, got torch.int64",
    ),
    "sparse mask": (
        lambda: pixels(torch.ones(2, 4, 4, dtype=torch.bool).to_sparse()), N,
        "mask: expected a dense tensor, got a torch.sparse_coo one",
    ),
    "dtype of x": (
        lambda: pixels(None, x=torch.randn(2, 8, 4, 4, dtype=torch.bfloat16)), T,
        "x: expected the weights' dtype torch.float32, got torch.bfloat16",
    ),
    **{
        f"temperature {given!r}": (
            lambda given=given: GumbelSelector(temperature=given), T,
            r"temperature: expected two numbers \(start, end\), got ",
        )
        for given in (1.0, (1.0,), ("a", "b"))
    },
}  # fmt: skip


@pytest.mark.parametrize("name", MULTIHEAD | PIXELS)
def test_bad_calls(name: str) -> None:
    call, error, message = (MULTIHEAD | PIXELS)[name]
    with pytest.raises(error, match=f"^{message}") as caught:
        call()
    assert type(caught.value) is error and "\n" not in str(caught.value)


def test_autocast_takes_any_floating_dtype() -> None:
    """It casts inputs and weights, so they need not agree."""
    x = torch.randn(2, 8, 4, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert pixels(None, x=x).isfinite().all()
        out, _ = multihead()(*[tokens(dtype=torch.bfloat16)] * 3)
    assert out.dtype is torch.bfloat16


def test_dense_core_still_takes_its_masks() -> None:
    module = MaskAttention2d(8, 2, core=DenseAttentionCore())
    assert module(torch.randn(2, 8, 4, 4), index(1, 16)).isfinite().all()


def test_hooks_that_change_what_was_saved_are_blamed() -> None:
    """As hooks that keep activations in half precision, and forget the way back."""
    q = torch.randn(1, 1, 4, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.half(), lambda t: t):
        out = masked_attention(q, q, q)
    with pytest.raises(TypeError, match=r"^saved_tensors_hooks: expected tensors back in"):
        out.sum().backward()
