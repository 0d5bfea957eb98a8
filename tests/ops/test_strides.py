# SPDX-License-Identifier: BSD-3-Clause
"""Memory layouts: of inputs, of gradients that come in, of results; strides past 2^31."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from cases import Case, Inputs, make
from harness import INTERPRETED, TARGETS, Target, ran_on, run
from layouts import EXPANDED, LAYOUTS, offset_by_one
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from maskattn_kernels import masked_attention

CASE = Case("strides", heads=4, kv_heads=2, query_len=45, key_len=70, head_dim=46, bias="per_head")
if INTERPRETED:
    CASE = replace(CASE, query_len=20, key_len=37)


def assert_same(results: dict[str, Tensor], expected: dict[str, Tensor], exact: bool) -> None:
    for name, result in results.items():
        if exact:
            assert torch.equal(result, expected[name]), name
        else:  # torch's matmul, under the reference, picks its order of summation by layout
            torch.testing.assert_close(result, expected[name], rtol=2e-5, atol=2e-5)


def with_layout(x: Inputs, change: Callable[[Tensor], Tensor], *names: str) -> Inputs:
    changed = {name: change(getattr(x, name)) for name in names}
    for name, t in changed.items():
        assert torch.equal(t, getattr(x, name)) or change in EXPANDED.values()
    return replace(x, **changed)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_inputs_and_gradient(target: Target, layout: str) -> None:
    """Every layout gives what the contiguous one gives."""
    x = make(CASE, target.dtype)
    y = with_layout(x, LAYOUTS[layout], "query", "key", "value", "dout")
    assert_same(run(target, y), run(target, x), exact=target.backend != "reference")


@pytest.mark.parametrize("expanded", EXPANDED)
@pytest.mark.parametrize("names", [("query",), ("key", "value"), ("dout",)], ids=str)
def test_strides_of_zero(target: Target, expanded: str, names: tuple[str, ...]) -> None:
    """A gradient of stride 0 is what `out.sum().backward()` sends."""
    x = make(CASE, target.dtype)
    y = with_layout(x, EXPANDED[expanded], *names)
    dense = replace(y, **{name: getattr(y, name).contiguous() for name in names})
    assert_same(run(target, y), run(target, dense), exact=target.backend != "reference")


def test_strides_of_the_small_tensors(target: Target) -> None:
    """Masks, bias and dlse that are transposed, sliced or expanded."""
    x = make(replace(CASE, per_head=True, keys=0.6), target.dtype)
    y = replace(
        x,
        key_mask=x.key_mask.transpose(0, 2).contiguous().transpose(0, 2),
        query_mask=torch.stack([x.query_mask, ~x.query_mask], -1)[..., 0],
        key_bias=torch.stack([x.key_bias, x.key_bias * torch.nan], -1)[..., 0],
        dlse=x.dlse.transpose(1, 2).contiguous().transpose(1, 2),
    )
    assert_same(run(target, y), run(target, x), exact=True)
    z = replace(x, dlse=torch.ones(()).to(x.dlse).expand(x.dlse.shape))
    assert_same(run(target, z), run(target, replace(z, dlse=z.dlse.contiguous())), exact=True)


@pytest.mark.parametrize("backward", ["sum", "cat", "transposed"])
def test_gradients_as_autograd_sends_them(target: Target, backward: str) -> None:
    x = make(CASE, target.dtype)
    grads = []
    for contiguous in (False, True):
        q, k, v = (t.clone().requires_grad_() for t in (x.query, x.key, x.value))
        with ran_on(target.backend):
            out = masked_attention(q, k, v, enable_gqa=True, backend=target.backend)
            out.register_hook(lambda g, c=contiguous: g.contiguous() if c else g)
            if backward == "sum":
                out.sum().backward()
            elif backward == "cat":
                (torch.cat([out, out], -1) * torch.arange(92)).sum().backward()
            else:
                (out.transpose(1, 3) * torch.arange(4)).sum().backward()
        grads.append({"dq": q.grad, "dk": k.grad, "dv": v.grad})
    assert_same(*grads, exact=target.backend != "reference")


@pytest.mark.parametrize("target", TARGETS, ids=str, indirect=True)
def test_misaligned_rows(target: Target) -> None:
    """head_dim 46 and a storage offset of one element: no row is aligned."""
    x = make(CASE, target.dtype)
    y = with_layout(x, offset_by_one, "query", "key", "value", "dout")
    assert_same(run(target, y), run(target, x), exact=target.backend != "reference")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_of_results(target: Target, layout: str) -> None:
    """Results are dense with their tensor's order of tokens and heads, and fake tensors know it:
    a compiled program that believes in other strides reads wrong numbers."""
    x = make(CASE, target.dtype)
    q, k, v = (LAYOUTS[layout](t) for t in (x.query, x.key, x.value))

    def outputs(*tensors: Tensor) -> list[Tensor]:
        q, k, v, dout = tensors
        q, k, v = (t.detach().requires_grad_() for t in (q, k, v))
        out, lse = masked_attention(
            q, k, v, enable_gqa=True, return_lse=True, backend=target.backend
        )
        return [out, lse, *torch.autograd.grad(out, (q, k, v), dout)]

    real = outputs(q, k, v, x.dout)
    for result, like in zip((real[0], *real[2:]), (q, q, k, v), strict=True):
        is_tokens_first = like.stride(1) < like.stride(2)
        assert (result.transpose(1, 2) if is_tokens_first else result).is_contiguous()
    assert real[1].is_contiguous()
    with FakeTensorMode() as mode:
        fakes = outputs(*(mode.from_tensor(t) for t in (q, k, v, x.dout)))
    for a, b in zip(real, fakes, strict=True):
        assert (a.shape, a.stride(), a.dtype) == (b.shape, b.stride(), b.dtype)


def huge(shape: tuple[int, ...], strides: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor whose elements lie far apart; the memory between them is never touched."""
    torch.utils.deterministic.fill_uninitialized_memory = False
    return torch.empty_strided(shape, strides, dtype=dtype)


@pytest.mark.parametrize("dim", [0, 1, 2], ids=["batch", "heads", "tokens"])
@pytest.mark.parametrize("names", [("query",), ("key", "value"), ("dout",)], ids=str)
def test_strides_past_int32(target: Target, dim: int, names: tuple[str, ...]) -> None:
    """Offsets beyond 2^31 elements wrap in peers, silently."""
    case = Case("huge", 2, 2, 2, 2, 2, head_dim=4, keys=None, queries=None)
    x = make(case, target.dtype)
    y = x
    for name in names:
        strides = [8, 4, 16, 1]
        strides[dim] = 2**31 + 24
        far = huge((2, 2, 2, 4), tuple(strides), target.dtype)
        y = replace(y, **{name: far.copy_(getattr(x, name))})
    assert_same(run(target, y), run(target, x), exact=target.backend != "reference")


def test_lazily_negated_input(target: Target) -> None:
    """A view whose sign is only a flag is negated before it is read."""
    z = torch.randn(1, 2, 5, 8, dtype=torch.complex64)
    lazy = z.conj().imag
    assert lazy.is_neg()
    if target.dtype is not torch.float32:
        pytest.skip("complex numbers have no bfloat16 parts")
    with ran_on(target.backend):
        result = masked_attention(lazy, lazy, lazy, backend=target.backend)
        q = lazy.resolve_neg()
        assert torch.equal(result, masked_attention(q, q, q, backend=target.backend))
