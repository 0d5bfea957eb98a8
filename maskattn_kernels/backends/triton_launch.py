# SPDX-License-Identifier: BSD-3-Clause
"""The ops of the Triton backend: each runs the plan of its kind of call.

Nothing here looks at what a tensor holds. Grids and split numbers come from sizes, which bound the
counts that the kernels read on the device; so a call never waits for the device, and a CUDA graph
captured with one mask is right for every other. Grids have one dimension, for the others end at
65,535 programs.
"""

from torch import Tensor

from maskattn_kernels.backends.triton_backward_plan import plan_bwd
from maskattn_kernels.backends.triton_choices import precision_of
from maskattn_kernels.backends.triton_forward_plan import plan_fwd, plan_infer, plan_select_tokens
from maskattn_kernels.backends.triton_plans import call


def select_tokens(mask: Tensor) -> tuple[Tensor, Tensor]:
    indices, counts = call(plan_select_tokens, (mask,), 0.0)
    return indices, counts


def fwd(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_indices: Tensor | None,
    query_counts: Tensor | None,
    key_indices: Tensor | None,
    key_counts: Tensor | None,
    key_bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    index = (query_indices, query_counts, key_indices, key_counts)
    precision = precision_of(query.dtype)
    out, lse = call(plan_fwd, (query, key, value, *index, key_bias), scale, precision)
    return out, lse


def infer(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_mask: Tensor | None,
    key_mask: Tensor | None,
    key_bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor]:
    inputs = (query, key, value, query_mask, key_mask, key_bias)
    shared = query_mask is key_mask
    out, lse = call(plan_infer, inputs, scale, precision_of(query.dtype), shared)
    return out, lse


def bwd(
    dout: Tensor,
    dlse: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    lse: Tensor,
    query_indices: Tensor | None,
    query_counts: Tensor | None,
    key_indices: Tensor | None,
    key_counts: Tensor | None,
    key_bias: Tensor | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    index = (query_indices, query_counts, key_indices, key_counts)
    inputs = (dout, dlse, query, key, value, out, lse, *index, key_bias)
    dq, dk, dv, dbias = call(plan_bwd, inputs, scale, precision_of(query.dtype))
    return dq, dk, dv, dbias
