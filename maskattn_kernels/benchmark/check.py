# SPDX-License-Identifier: BSD-3-Clause
"""Every answer is compared with a float64 oracle before it is timed."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from maskattn_kernels.benchmark.cases import Case, Inputs

__all__ = ["TOLERANCE", "WrongResult", "check", "oracle"]

#: Largest accepted |answer - oracle| / |oracle| in the Frobenius norm, for each tensor. The bound
#: is a few roundings of the type: enough to tell a wrong result from a right one. The strict rule
#: on accuracy (against PyTorch's own error, element by element) is in the test suite.
TOLERANCE = {"float32": 5e-6, "bfloat16": 2e-2, "float16": 3e-3}
#: Number of scores in memory at a time: 64 MiB in float64.
BLOCK_SCORES = 1 << 23


class WrongResult(Exception):
    """An answer too far from the oracle to be timed."""


def oracle(case: Case, inputs: Inputs) -> tuple[Tensor, ...]:
    """The exact answer in float64, by the formula, in blocks of query rows.

    Returns:
        (out,) or, for a case that trains, (out, dq, dk, dv), shaped as (query, query, key, value).
    """
    names = 4 if case.trains else 1
    like = (inputs.query, *inputs.operands)[:names]
    results = tuple(torch.zeros_like(t, dtype=torch.float64, requires_grad=False) for t in like)
    with torch.no_grad():
        for item in range(case.batch):
            for head in range(case.group):
                heads = (head, head, 0, 0)[:names]
                tensors = (r[item, h] for r, h in zip(results, heads, strict=True))
                _oracle_head(case, inputs, item, head, *tensors)
    return results


def _oracle_head(
    case: Case,
    inputs: Inputs,
    item: int,
    head: int,
    out: Tensor,
    dq: Tensor | None = None,
    dk: Tensor | None = None,
    dv: Tensor | None = None,
) -> None:
    """Adds the results of one query head of a batch item to (N, D) tensors that begin as zeros."""
    keys = inputs.mask[item].nonzero().squeeze(1)
    q, dout = (t[item, head].double() for t in (inputs.query, inputs.dout))
    k, v = (t[item, 0, keys].double() for t in (inputs.key, inputs.value))
    queries = keys if case.mode == "qk" else torch.arange(len(q), device=keys.device)
    scale = 1 / math.sqrt(case.head_dim)
    for rows in queries.split(max(1, BLOCK_SCORES // len(keys))):
        p = (q[rows] @ k.T).mul_(scale).softmax(dim=1)
        o = p @ v
        out[rows] = o
        if dq is None or dk is None or dv is None:
            continue
        do = dout[rows]
        dv.index_add_(0, keys, p.T @ do)
        ds = p.mul_((do @ v.T).sub_((do * o).sum(1, keepdim=True))).mul_(scale)
        dq[rows] = ds @ k
        dk.index_add_(0, keys, ds.T @ q[rows])


def error(answer: Tensor, right: Tensor) -> float:
    """Relative distance of one tensor to the oracle's; NaN anywhere gives NaN."""
    return float((answer.double() - right).norm() / right.norm().clamp_min(1e-300))


def check(case: Case, answer: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Compare an answer with the oracle's.

    Returns:
        the largest relative error of its tensors.

    Raises:
        WrongResult: an error is above ``TOLERANCE``, or an element is NaN.
    """
    worst = 0.0
    for name, a, r in zip(("out", "dq", "dk", "dv"), answer, right, strict=False):
        e = error(a, r)
        if not e <= TOLERANCE[case.dtype]:  # NaN too
            raise WrongResult(f"{name} is off by {e:.1e}, allowed {TOLERANCE[case.dtype]:.0e}")
        worst = max(worst, e)
    return worst
