# SPDX-License-Identifier: BSD-3-Clause
"""Gradients: numerically on the reference, in part, through lse, and what is refused."""

import pytest
import torch
from cases import BY_NAME, Case, make
from harness import Target, arguments, leaves, ran_on, run, run_dense
from torch import Tensor
from torch.autograd import forward_ad

from maskattn_kernels import masked_attention

GRADCHECK_CASES = [
    Case("small", 1, 2, 2, 5, 6, 4, bias="normal"),
    Case("gqa", 2, 4, 2, 3, 5, 3, per_head=True, bias="per_head"),
    Case("unmasked", 1, 1, 1, 4, 4, 2, keys=None, queries=None),
    Case("nothing", 1, 2, 2, 4, 5, 2, keys="none", bias="normal"),
    Case("negative", 1, 1, 1, 4, 5, 3, scale=-0.7, bias="normal"),
]
DOUT_LAYOUTS = {
    "contiguous": lambda g: g,
    "tokens_first": lambda g: g.transpose(1, 2).contiguous().transpose(1, 2),
    "features_first": lambda g: g.mT.contiguous().mT,
    "sliced": lambda g: torch.cat([g, g], -1)[..., : g.shape[-1]],
    "expanded": lambda g: g[..., :1].expand(g.shape),
}


@pytest.mark.parametrize("layout", DOUT_LAYOUTS)
@pytest.mark.parametrize("case", GRADCHECK_CASES, ids=str)
def test_gradcheck_of_the_reference(case: Case, layout: str) -> None:
    """Finite differences of out and lse; gradcheck alone feeds only contiguous gradients."""
    x = make(case, torch.float64)
    kwargs = arguments(x)
    change = DOUT_LAYOUTS[layout]

    class Relayout(torch.autograd.Function):
        @staticmethod
        def forward(ctx: object, t: Tensor) -> Tensor:
            return t.clone()

        @staticmethod
        def backward(ctx: object, grad: Tensor) -> Tensor:
            return change(grad)

    def function(
        q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        out, lse = masked_attention(
            q, k, v, key_bias=bias, return_lse=True, backend="reference", **kwargs
        )
        if layout == "expanded":  # all features get one gradient: look at their sum
            out = Relayout.apply(out).sum(-1)
        else:
            out = Relayout.apply(out)
        return out, lse.masked_fill(lse == -torch.inf, 0)

    with ran_on("reference"):
        assert torch.autograd.gradcheck(function, tuple(leaves(x)))


def test_lse_alone(target: Target) -> None:
    """lse has a gradient of its own, which peers drop without a word."""
    x = make(BY_NAME["bias_normal"], target.dtype)
    inputs, dense = leaves(x), run_dense(make(BY_NAME["bias_normal"], torch.float64), torch.float64)
    with ran_on(target.backend):
        out, lse = masked_attention(
            *inputs[:3], key_bias=inputs[3], return_lse=True, backend=target.backend, **arguments(x)
        )
        grads = torch.autograd.grad(lse, inputs, x.dlse)
        both = torch.autograd.grad(
            masked_attention(
                *inputs[:3],
                key_bias=inputs[3],
                return_lse=True,
                backend=target.backend,
                **arguments(x),
            ),
            inputs,
            (torch.zeros_like(out), x.dlse),
        )
    assert lse.shape == dense["lse"].shape
    for alone, with_zero in zip(grads, both, strict=True):
        assert torch.equal(alone, with_zero)
    assert grads[0].any() and grads[1].any() and grads[3].any()
    assert not grads[2].any()  # lse does not depend on value


@pytest.mark.parametrize("wanted", range(4), ids=["query", "key", "value", "key_bias"])
def test_one_input_alone_requires_grad(target: Target, wanted: int) -> None:
    x = make(BY_NAME["bias_normal"], target.dtype)
    names = ("dq", "dk", "dv", "dbias")
    inputs = [t.detach() for t in leaves(x)]
    inputs[wanted].requires_grad_()
    with ran_on(target.backend):
        out, lse = masked_attention(
            *inputs[:3], key_bias=inputs[3], return_lse=True, backend=target.backend, **arguments(x)
        )
        (grad,) = torch.autograd.grad((out, lse), inputs[wanted], (x.dout, x.dlse))
    assert torch.equal(grad, run(target, x)[names[wanted]])


@pytest.mark.parametrize(
    "shape", [(1, 30), (2, 30), (1, 1, 30), (2, 1, 30), (1, 3, 30), (2, 3, 30)]
)
def test_bias_that_broadcasts(target: Target, shape: tuple[int, ...]) -> None:
    """The gradient of a broadcast bias is summed back to its own shape."""
    x = make(Case("broadcast", heads=3, kv_heads=3, key_len=30), target.dtype)
    bias = torch.randn(shape).requires_grad_()
    full = (bias if len(shape) == 3 else bias[:, None]).detach().expand(2, 3, 30).contiguous()
    full.requires_grad_()
    q, k, v = x.query, x.key, x.value
    kwargs = {"key_mask": x.key_mask, "backend": target.backend}
    with ran_on(target.backend):
        masked_attention(q, k, v, key_bias=bias, **kwargs).backward(x.dout)
        masked_attention(q, k, v, key_bias=full, **kwargs).backward(x.dout)
    expected = full.grad.sum_to_size(shape if len(shape) == 3 else (shape[0], 1, 30)).view(shape)
    torch.testing.assert_close(bias.grad, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_bias_of_another_dtype(target: Target, dtype: torch.dtype) -> None:
    """The bias counts in float32 whatever it came in; its gradient goes back in its own dtype."""
    x = make(BY_NAME["bias_normal"], target.dtype)
    bias = x.key_bias.to(dtype).requires_grad_()
    kwargs = {**arguments(x), "backend": target.backend}
    with ran_on(target.backend):
        out = masked_attention(x.query, x.key, x.value, key_bias=bias, **kwargs)
        expected = masked_attention(
            x.query, x.key, x.value, key_bias=bias.detach().float(), **kwargs
        )
        out.backward(x.dout)
    assert torch.equal(out, expected)
    assert bias.grad.dtype is dtype and bias.grad.any()


def test_double_backward_is_refused(target: Target) -> None:
    """create_graph gives the first derivative; the second is refused, not wrong."""
    q = torch.randn(1, 2, 6, 8, dtype=target.dtype, requires_grad=True)
    with ran_on(target.backend):
        out = masked_attention(q, q, q, backend=target.backend)
        (grad,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    assert grad.requires_grad
    with pytest.raises(NotImplementedError, match=r"^masked_attention: double backward"):
        grad.sum().backward()


def test_forward_mode_is_refused(target: Target) -> None:
    """A tangent is refused, not dropped in silence."""
    q = torch.randn(1, 2, 6, 8, dtype=target.dtype)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(q, torch.ones_like(q))
        with pytest.raises(NotImplementedError, match=r"^masked_attention: forward-mode"):
            masked_attention(q, dual, q, backend=target.backend)
        assert masked_attention(q, q, q, backend=target.backend).shape == q.shape


def test_saved_tensors_may_not_change(target: Target) -> None:
    q, k = torch.randn(2, 1, 1, 6, 8).to(target.dtype).unbind()
    q, k = q.clone().requires_grad_(), k.clone()
    out = masked_attention(q, k, k, backend=target.backend)
    k.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


@pytest.mark.parametrize("shared", [True, False])
def test_masks_may_change_before_the_backward_pass(target: Target, shared: bool) -> None:
    """A buffer may be filled with the mask of the next layer."""
    q = torch.randn(2, 2, 9, 8).to(target.dtype).requires_grad_()
    keys = torch.rand(2, 9) < 0.5
    queries = keys if shared else torch.rand(2, 9) < 0.5

    def gradient(change: bool) -> Tensor:
        masks = [keys.clone(), queries.clone()]
        arguments = {"key_mask": masks[0], "query_mask": masks[0] if shared else masks[1]}
        out = masked_attention(q, q, q, **arguments, backend=target.backend)
        for mask in masks if change else ():
            mask.logical_not_()
        return torch.autograd.grad(out.square().sum(), q)[0]

    assert torch.equal(gradient(change=True), gradient(change=False))
