# SPDX-License-Identifier: BSD-3-Clause
"""torch.func: vmap folds into the batch, grad works, what cannot work is refused in one line."""

import pytest
import torch
from harness import RanOps, Target
from torch import Tensor
from torch.func import grad, hessian, jacrev, jvp, vmap

from maskattn_kernels import masked_attention, select_tokens

V, B, H, N, D = 3, 2, 2, 9, 4


def tensors(target: Target) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q, k, bias, mask with a mapped dimension in front."""
    q, k = torch.randn(2, V, B, H, N, D).to(target.dtype).unbind()
    return q, k, torch.randn(V, B, H, N), torch.rand(V, B, N) < 0.5


@pytest.mark.parametrize("mapped", ["query", "key", "mask", "bias", "all", "all_last"])
def test_vmap(target: Target, mapped: str) -> None:
    """Any of the arguments may be mapped, over any dimension; the op runs once."""
    q, k, bias, mask = tensors(target)

    def function(q: Tensor, k: Tensor, bias: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        return masked_attention(
            q,
            k,
            k,
            key_bias=bias,
            key_mask=mask,
            query_mask=mask,
            return_lse=True,
            backend=target.backend,
        )

    names = ("query", "key", "bias", "mask")
    args = [
        t if mapped in (name, "all", "all_last") else t[0]
        for name, t in zip(names, (q, k, bias, mask), strict=True)
    ]
    expected = [
        function(
            *(
                t[i] if mapped in (name, "all", "all_last") else t
                for name, t in zip(names, args, strict=True)
            )
        )
        for i in range(V)
    ]
    in_dims: tuple = tuple(0 if mapped in (name, "all") else None for name in names)
    if mapped == "all_last":
        args, in_dims = [t.movedim(0, -1) for t in args], (-1,) * 4
    with RanOps() as ran:
        out, lse = vmap(function, in_dims=in_dims)(*args)
    assert ran.names.count(f"{target.backend}_fwd") == 1
    for i in range(V):
        assert torch.equal(out[i], expected[i][0]) and torch.equal(lse[i], expected[i][1])


def test_vmap_of_select_tokens() -> None:
    mask = torch.rand(V, B, N) < 0.5
    indices, counts = vmap(select_tokens)(mask)
    for i in range(V):
        expected = select_tokens(mask[i])
        assert torch.equal(indices[i], expected.indices) and torch.equal(counts[i], expected.counts)


def test_gradient_for_each_sample(target: Target) -> None:
    q, k, bias, mask = tensors(target)

    def loss(q: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
        out = masked_attention(q, k[0], k[0], key_bias=bias, key_mask=mask, backend=target.backend)
        return out.float().square().sum()

    dq, dbias = vmap(grad(loss, argnums=(0, 1)))(q, bias, mask)
    for i in range(V):
        one, bias_one = q[i].clone().requires_grad_(), bias[i].clone().requires_grad_()
        expected = torch.autograd.grad(loss(one, bias_one, mask[i]), (one, bias_one))
        assert torch.equal(dq[i], expected[0]) and torch.equal(dbias[i], expected[1])


def test_jacobian(target: Target) -> None:
    q = torch.randn(1, 1, 3, 2).to(target.dtype)

    def function(q: Tensor) -> Tensor:
        return masked_attention(q, q, q, backend=target.backend)

    expected = torch.autograd.functional.jacobian(function, q)
    assert torch.equal(jacrev(function)(q), expected)


def test_refused_in_one_line(target: Target) -> None:
    q = torch.randn(1, 1, 3, 2).to(target.dtype)

    def loss(q: Tensor) -> Tensor:
        return masked_attention(q, q, q, backend=target.backend).float().square().sum()

    with pytest.raises(NotImplementedError, match=r"^masked_attention: forward-mode"):
        jvp(loss, (q,), (q,))
    with pytest.raises(NotImplementedError, match=r"^masked_attention: forward-mode"):
        hessian(loss)(q)
    with pytest.raises(NotImplementedError, match=r"^masked_attention: double backward"):
        grad(lambda q: grad(loss)(q).float().sum())(q)
