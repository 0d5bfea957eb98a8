# SPDX-License-Identifier: BSD-3-Clause
"""key_bias of any size: a softmax does not feel a shift, and a key at -inf takes no part."""

from typing import Any

import pytest
import torch
from harness import Target, ran_on
from torch import Tensor

from maskattn_kernels import explain, masked_attention, select_tokens
from maskattn_kernels.nn import MaskedMultiheadAttention

LEVELS = (-1e4, -1e8, -(2.0**30), torch.finfo(torch.float32).min, 2.0**30, 3e38)
BIAS_SHAPES = [(2, 40), (1, 40), (2, 2, 40), (2, 1, 40), (1, 2, 40), (1, 1, 40)]
NAMES = ("out", "lse", "dq", "dk", "dv", "dbias")


def results(target: Target, *qkv: Tensor, key_bias: Tensor, **kwargs: Any) -> dict[str, Tensor]:
    """Forward and backward on the target, with gradients through out and lse."""
    inputs = [t.detach().requires_grad_() for t in (*qkv, key_bias)]
    with ran_on(target.backend):
        out, lse = masked_attention(
            *inputs[:3], key_bias=inputs[3], return_lse=True, backend=target.backend, **kwargs
        )
        douts = torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype)
        dlse = torch.linspace(1, 2, lse.numel()).view_as(lse)
        grads = torch.autograd.grad((out, lse), inputs, (douts, dlse.to(lse.dtype)))
    return dict(zip(NAMES, (out.detach(), lse.detach(), *grads), strict=True))


def some_qkv(target: Target, heads: int = 2, kv_heads: int = 2, tokens: int = 40) -> list[Tensor]:
    return [torch.randn(2, h, tokens, 8).to(target.dtype) for h in (heads, kv_heads, kv_heads)]


@pytest.mark.parametrize("level", LEVELS)
def test_equal_biases_of_any_size_change_nothing_but_lse(target: Target, level: float) -> None:
    """As BERT pads a sample: every key of a row gets -1e9, or the lowest number there is."""
    qkv = some_qkv(target)
    nothing = results(target, *qkv, key_bias=torch.zeros(2, 40))
    shifted = results(target, *qkv, key_bias=torch.full((2, 40), level))
    torch.testing.assert_close(shifted.pop("lse"), nothing.pop("lse") + level)
    for name, t in nothing.items():
        assert torch.equal(shifted[name], t), name


@pytest.mark.parametrize("as_index", [False, True])
@pytest.mark.parametrize("level", [-(2.0**30), 2.0**30])
def test_level_is_that_of_the_selected_keys(target: Target, level: float, as_index: bool) -> None:
    """Each head has its own; biases of tokens that are not selected do not count."""
    qkv = some_qkv(target, heads=4)
    mask = torch.rand(2, 2, 40) < 0.5
    bias = 128 * torch.randint(-2, 3, (2, 2, 40)).float()  # numbers that the level leaves exact
    heads = torch.tensor([0.0, 1.0])[:, None] * level
    wild = torch.tensor([torch.nan, torch.inf, 3e38, -torch.inf]).repeat(10)
    kwargs = {"key_mask": select_tokens(mask) if as_index else mask, "enable_gqa": True}
    right = results(target, *qkv, key_bias=bias, **kwargs)
    got = results(target, *qkv, key_bias=torch.where(mask, bias + heads, wild), **kwargs)
    per_query_head = heads.repeat_interleave(2, 0)
    torch.testing.assert_close(got.pop("lse"), right.pop("lse") + per_query_head, rtol=1e-6, atol=1)
    for name, t in right.items():
        assert torch.equal(got[name], t), name


def test_average_of_ones_is_one_in_float64() -> None:
    q = torch.randn(1, 1, 4, 8, dtype=torch.float64)
    bias = torch.full((1, 4), torch.finfo(torch.float64).min, dtype=torch.float64)
    out = masked_attention(q, q, torch.ones_like(q), key_bias=bias)
    torch.testing.assert_close(out, torch.ones_like(q))


def test_wider_biases_than_the_call(target: Target) -> None:
    """A float64 bias is taken relative to its largest before it is rounded."""
    qkv = some_qkv(target)
    bias = torch.full((2, 40), torch.finfo(torch.float64).min, dtype=torch.float64)
    got = results(target, *qkv, key_bias=bias)["out"]
    assert torch.equal(got, results(target, *qkv, key_bias=torch.zeros(2, 40))["out"])


@pytest.mark.parametrize("score", [2e5, 2e7])
def test_reference_normalises_large_scores(score: float) -> None:
    """lse alone cannot hold the score and the log of the count; the weights still sum to 1."""
    q = torch.full((1, 1, 4, 8), (score / 8) ** 0.5)
    v = torch.ones(1, 1, 4, 8, requires_grad=True)
    out = masked_attention(q, q, v, scale=1.0, backend="reference")
    torch.testing.assert_close(out, torch.ones_like(out))
    out.sum().backward()
    torch.testing.assert_close(v.grad.sum(), torch.tensor(32.0))


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, 1e30])
@pytest.mark.parametrize("which", ["all", "some"])
def test_key_at_minus_infinity_takes_no_part(target: Target, which: str, poison: float) -> None:
    """As if it were not selected: nothing that it holds is seen, and its gradients are 0."""
    qkv = some_qkv(target, heads=4)
    out_of_it = torch.ones(2, 40, dtype=torch.bool) if which == "all" else torch.rand(2, 40) < 0.3
    bias = torch.randn(2, 40)
    kwargs = {"enable_gqa": True, "query_mask": torch.rand(2, 40) < 0.6}
    right = results(target, *qkv, key_bias=bias, key_mask=~out_of_it, **kwargs)
    for t in qkv[1:]:
        t.masked_fill_(out_of_it[:, None, :, None], poison)
    got = results(target, *qkv, key_bias=bias.masked_fill(out_of_it, -torch.inf), **kwargs)
    for name, t in right.items():
        torch.testing.assert_close(got[name], t, msg=lambda m, name=name: f"{name}: {m}")
    for name in ("dk", "dv"):
        assert not got[name].transpose(1, 2)[out_of_it].any()
    assert not got["dbias"][out_of_it].any()


@pytest.mark.parametrize("as_index", [False, True])
@pytest.mark.parametrize("shape", BIAS_SHAPES)
def test_plain_call_is_one_that_names_its_backend(
    target: Target, shape: tuple[int, ...], as_index: bool
) -> None:
    """Although only the latter is validated in Python; biases of all shapes that broadcast."""
    qkv = some_qkv(target, heads=4)
    mask = torch.rand(2, 40) < 0.5
    kwargs = {"key_mask": select_tokens(mask) if as_index else mask, "enable_gqa": True}
    bias = torch.randn(shape) - 1e9
    inputs = [t.requires_grad_() for t in (*qkv, bias)]

    def call(**more: Any) -> list[Tensor]:
        out = masked_attention(*inputs[:3], key_bias=bias, **kwargs, **more)
        return [out, *torch.autograd.grad(out.square().sum(), inputs)]

    chosen = explain(*qkv, **kwargs).backend
    if chosen != target.backend:
        pytest.skip(f"a call that names no backend runs on {chosen}")
    *same, dbias = call()
    *right, right_dbias = call(backend=target.backend)
    assert all(torch.equal(a, b) for a, b in zip(same, right, strict=True))
    torch.testing.assert_close(dbias, right_dbias)  # sums over heads may be in another order
    with torch.no_grad():
        out = masked_attention(*qkv, key_bias=bias, **kwargs)
    assert torch.equal(out, same[0])


@pytest.mark.parametrize("length", [0, 5])
def test_no_keys_at_all(target: Target, length: int) -> None:
    q, k = torch.randn(1, 1, length, 8).to(target.dtype), torch.randn(1, 1, 0, 8).to(target.dtype)
    out, lse = masked_attention(
        q, k, k, key_bias=torch.zeros(1, 0), return_lse=True, backend=target.backend
    )
    assert not out.any() and (lse == -torch.inf).all()


def test_sample_padded_with_the_lowest_number() -> None:
    """Where all keys have it, it changes nothing; else it ignores its keys, as True does."""
    attention = MaskedMultiheadAttention(16, 4, batch_first=True)
    x, lowest = torch.randn(2, 6, 16), torch.zeros(2, 6)
    lowest[0] = lowest[1, 4:] = torch.finfo(torch.float32).min
    ignored = lowest.bool()
    ignored[0] = False

    def gradients(padding: Tensor) -> list[Tensor]:
        attention.zero_grad()
        out, _ = attention(x, x, x, key_padding_mask=padding)
        out.square().sum().backward()
        return [out.detach(), *(p.grad.clone() for p in attention.parameters())]

    for got, right in zip(gradients(lowest), gradients(ignored), strict=True):
        torch.testing.assert_close(got, right)


def test_compiled_and_mapped() -> None:
    q, bias = torch.randn(3, 2, 1, 9, 8), torch.full((3, 2, 9), -1e9)
    bias[..., :4] = torch.finfo(torch.float32).min

    def call(q: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        return masked_attention(q, q, q, key_bias=bias, return_lse=True)

    right = [call(*pair) for pair in zip(q, bias, strict=True)]
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    mapped = torch.vmap(call)(q, bias)
    for i, (out, lse) in enumerate(right):
        for got in (compiled(q[i], bias[i]), (mapped[0][i], mapped[1][i])):
            torch.testing.assert_close(got, (out, lse))
