# SPDX-License-Identifier: BSD-3-Clause
"""The registered ops of every backend, by its name."""

from typing import Any, NamedTuple

import torch

from maskattn_kernels.torch_compat import OpOverload, below_autograd


class BackendOps(NamedTuple):
    """The registered ops of one backend."""

    select_tokens: OpOverload
    fwd: OpOverload
    bwd: OpOverload
    infer: OpOverload | None
    masks_bwd: OpOverload | None


def find_ops(name: str) -> BackendOps:
    def op(field: str) -> OpOverload:
        return getattr(torch.ops.maskattn, f"{name}_{field}").default

    def optional(field: str) -> OpOverload | None:
        return op(field) if hasattr(torch.ops.maskattn, f"{name}_{field}") else None

    return BackendOps(
        op("select_tokens"), op("fwd"), op("bwd"), optional("infer"), optional("masks_bwd")
    )


OPS: dict[str, BackendOps] = {}
"""Filled by `ops.py` as backends come."""


def call_below_autograd(op: OpOverload, *args: Any) -> Any:
    """The op without the cost of its registered autograd."""
    with below_autograd():
        return op(*args)
