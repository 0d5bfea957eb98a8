# SPDX-License-Identifier: BSD-3-Clause
"""The registered ops: schemas, opcheck, fakes, autocast, FLOP counts."""

import pytest
import torch
from cases import BY_NAME, make
from harness import RanOps, Target, arguments, ran_on
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from maskattn_kernels import masked_attention, select_tokens
from maskattn_kernels.backends import by_name
from maskattn_kernels.backends.base import OPTIONAL_SCHEMAS, SCHEMAS
from maskattn_kernels.op_table import OPS
from maskattn_kernels.problem import Problem
from maskattn_kernels.token_index import with_heads

OPCHECK_CASES = (
    "n17",
    "heads_4_2_per_head",
    "keys_none_queries_0.5",
    "all_keys_bias",
    "zero_batch",
)


A_CPU_CALL = Problem(1, 1, 1, 4, 4, 8, torch.float32, "cpu")
ON_CPU = [name for name in OPS if not by_name(name).reasons(A_CPU_CALL)]


def op_arguments(name: str, requires_grad: bool) -> tuple:
    """The arguments of the fwd op for a named case."""
    x = make(BY_NAME[name], torch.float32)
    bias = with_heads(x.key_bias).expand(x.key.shape[:3]) if x.key_bias is not None else None
    masks = (x.query_mask, x.key_mask)
    index = [t for m in masks for t in (select_tokens(m) if m is not None else (None, None))]
    return (
        *(t.requires_grad_(requires_grad) for t in (x.query, x.key, x.value)),
        *index,
        bias,
        0.3,
    )


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("name", OPCHECK_CASES)
def test_opcheck(backend: str, name: str) -> None:
    """Schema, autograd registration, fake tensors and AOT dispatch of all three ops."""
    ops, x = OPS[backend], make(BY_NAME[name], torch.float32)
    if x.key_mask is not None:
        opcheck(ops.select_tokens, (with_heads(x.key_mask),))
    opcheck(ops.fwd, op_arguments(name, requires_grad=True))
    args = op_arguments(name, requires_grad=False)
    out, lse = ops.fwd(*args)
    dlse = x.dlse if x.key_bias is not None else None
    opcheck(ops.bwd, (x.dout, dlse, *args[:3], out, lse, *args[3:]))
    if ops.infer is not None:
        masks = (m if m is None else with_heads(m) for m in (x.query_mask, x.key_mask))
        opcheck(ops.infer, (*args[:3], *masks, *args[-2:]))
    if ops.masks_bwd is not None:
        given = (x.query_mask, x.key_mask, x.key_bias, args[-1])
        opcheck(ops.infer, (*args[:3], *given))
        opcheck(ops.masks_bwd, (x.dout, dlse, *args[:3], out, lse, *given))


@pytest.mark.parametrize("name", SCHEMAS | OPTIONAL_SCHEMAS)
def test_all_backends_have_the_same_schemas(name: str) -> None:
    for backend, ops in OPS.items():
        op = getattr(ops, name)
        assert op is not None or name in OPTIONAL_SCHEMAS
        if op is not None:
            schema = str(op._schema).removeprefix(f"maskattn::{backend}_{name}")
            assert schema == (SCHEMAS | OPTIONAL_SCHEMAS)[name]


def test_meta_tensors_give_shapes() -> None:
    """On the meta device a model's shapes can be worked out without computing."""
    q = torch.empty(2, 3, 50, 16, device="meta", requires_grad=True)
    mask = torch.empty(2, 50, dtype=torch.bool, device="meta")
    out, lse = masked_attention(q, q, q, key_mask=mask, query_mask=mask, return_lse=True)
    out.sum().backward()
    assert out.shape == q.shape and lse.shape == (2, 3, 50) and q.grad.shape == q.shape
    assert out.is_meta and lse.is_meta and q.grad.is_meta


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    """As scaled_dot_product_attention: inputs are cast, gradients come back in their own dtype."""
    q, k, v = (t.clone().requires_grad_() for t in torch.randn(3, 1, 2, 20, 8).unbind())
    mask, bias = torch.rand(1, 20) < 0.5, torch.randn(1, 20)
    with torch.autocast("cpu", dtype=dtype):
        out, lse = masked_attention(q, k, v, key_mask=mask, key_bias=bias, return_lse=True)
        assert torch.nn.functional.scaled_dot_product_attention(q, k, v).dtype is dtype
    assert out.dtype is dtype and lse.dtype is torch.float32
    low = (t.detach().to(dtype) for t in (q, k, v))
    assert torch.equal(out, masked_attention(*low, key_mask=mask, key_bias=bias))
    out.float().sum().backward()
    assert q.grad.dtype is torch.float32 and q.grad.any()


def test_autocast_unifies_dtypes_and_leaves_float64() -> None:
    q, k, v = torch.randn(3, 1, 1, 5, 8).unbind()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert masked_attention(q.bfloat16(), k, v.half()).dtype is torch.bfloat16
        assert masked_attention(q.double(), k.double(), v.double()).dtype is torch.float64


def test_autocast_of_the_op_itself(target: Target) -> None:
    q = torch.randn(1, 1, 5, 8)
    none = (None,) * 5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out, lse = OPS[target.backend].fwd(q, q, q, *none, 0.5)
    assert out.dtype is torch.bfloat16 and lse.dtype is torch.float32


def test_backward_inside_autocast(target: Target) -> None:
    q = torch.randn(1, 1, 5, 8, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        masked_attention(q, q, q, backend=target.backend).sum().backward()
    assert q.grad.dtype is torch.float32 and q.grad.isfinite().all()


def test_flops_of_selected_tokens(target: Target) -> None:
    """Two products forward and five backward, of the tokens that are selected and no others."""
    x = make(BY_NAME["heads_4_2_per_head"], target.dtype)
    q = x.query.clone().requires_grad_()
    with FlopCounterMode(display=False) as counter, ran_on(target.backend):
        out = masked_attention(q, x.key, x.value, backend=target.backend, **arguments(x))
        forward = counter.get_total_flops()
        out.backward(x.dout)
    pairs = sum(
        int(x.query_mask[b, h].sum() * x.key_mask[b, h // 2].sum())
        for b in range(2)
        for h in range(4)
    )
    assert forward == 4 * 16 * pairs > 0
    assert counter.get_total_flops() == 14 * 16 * pairs


def test_flops_without_masks_are_the_dense_ones(target: Target) -> None:
    q, k = torch.randn(2, 3, 10, 8).to(target.dtype), torch.randn(2, 3, 20, 8).to(target.dtype)
    with FlopCounterMode(display=False) as counter:
        masked_attention(q, k, k, backend=target.backend)
    assert counter.get_total_flops() == 4 * 2 * 3 * 10 * 20 * 8


def test_flops_of_tensors_without_data() -> None:
    """Which tokens are selected is not known, so all of them count."""
    q = torch.empty(2, 3, 10, 8, device="meta")
    mask = torch.empty(2, 10, dtype=torch.bool, device="meta")
    with FlopCounterMode(display=False) as counter:
        masked_attention(q, q, q, key_mask=mask)
    assert counter.get_total_flops() == 4 * 2 * 3 * 10 * 10 * 8


def test_mask_given_twice_is_listed_once(target: Target) -> None:
    q = torch.randn(1, 1, 5, 8).to(target.dtype).requires_grad_()
    mask = torch.ones(1, 5, dtype=torch.bool)
    with RanOps() as ran:
        masked_attention(q, q, q, key_mask=mask, query_mask=mask, backend=target.backend)
    lists_masks = OPS[target.backend].masks_bwd is not None  # as one op does that
    names = ["infer"] if lists_masks else ["select_tokens", "fwd"]
    assert ran.names == [f"{target.backend}_{name}" for name in names]
